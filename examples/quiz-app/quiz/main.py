"""The pages and the JSON API."""

from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import Cookie, Depends, FastAPI, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from quiz import rounds, users
from quiz.database import session
from quiz.models import Topic, User
from schemas import AnswerOut, RoundOut

app = FastAPI(title="Quiz")
pages = Jinja2Templates(Path(__file__).parent / "templates")

Database = Annotated[AsyncSession, Depends(session, scope="function")]


async def signed_in(database: Database, user: Annotated[UUID | None, Cookie()] = None) -> User:
    found = None if user is None else await database.get(User, user)
    if found is None:
        raise HTTPException(303, headers={"Location": "/sign-in"})
    return found


Me = Annotated[User, Depends(signed_in)]


async def topic_of(database: Database, slug: str) -> Topic:
    found = await database.scalar(select(Topic).where(Topic.slug == slug))
    if found is None:
        raise HTTPException(404)
    return found


@app.get("/sign-in")
async def sign_in_page(request: Request) -> HTMLResponse:
    return pages.TemplateResponse(request, "sign_in.html")


@app.post("/sign-in")
async def sign_in(database: Database, name: Annotated[str, Form(min_length=1)]) -> Response:
    user = await users.sign_in(database, name.strip())
    response = RedirectResponse("/", status_code=303)
    response.set_cookie("user", str(user.id), httponly=True, samesite="lax")
    return response


@app.get("/")
async def home(request: Request, database: Database, me: Me) -> HTMLResponse:
    shown: dict[str, Any] = {"me": me, "topics": await users.topics(database, me)}
    return pages.TemplateResponse(request, "home.html", shown)


@app.get("/topics/{slug}")
async def quiz(
    request: Request, database: Database, me: Me, topic: Annotated[Topic, Depends(topic_of)]
) -> HTMLResponse:
    questions = await rounds.questions_for(database, me, topic)
    return pages.TemplateResponse(request, "quiz.html", {"topic": topic, "questions": questions})


@app.post("/topics/{slug}")
async def finish(
    request: Request, database: Database, me: Me, topic: Annotated[Topic, Depends(topic_of)]
) -> Response:
    form = await request.form()
    choices = {UUID(name): None if value == "" else int(str(value)) for name, value in form.items()}
    done = await rounds.finish(database, me, topic, choices)
    return RedirectResponse(f"/rounds/{done.id}", status_code=303)


@app.get("/rounds/{round_id}")
async def round_page(request: Request, database: Database, round_id: UUID, me: Me) -> HTMLResponse:
    done = await rounds.get(database, round_id)
    if done is None or done.user_id != me.id:
        raise HTTPException(404)
    return pages.TemplateResponse(
        request, "round.html", {"done": done, "score": rounds.score(done)}
    )


@app.get("/api/rounds/{round_id}")
async def round_as_json(database: Database, round_id: UUID, me: Me) -> RoundOut:
    done = await rounds.get(database, round_id)
    if done is None or done.user_id != me.id:
        raise HTTPException(404)
    return RoundOut(
        id=done.id,
        topic=done.topic.title,
        finished_at=done.finished_at,
        score=rounds.score(done),
        answers=[
            AnswerOut(
                question=each.question.prompt,
                choice=None if each.choice is None else each.question.choices[each.choice],
                right=each.choice == each.question.answer,
            )
            for each in done.answers
        ],
    )
