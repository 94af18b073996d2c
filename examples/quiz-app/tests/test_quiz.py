"""What a user sees."""

import re

from fastapi.testclient import TestClient


def sign_in(client: TestClient, name: str = "Ada") -> str:
    return client.post("/sign-in", data={"name": name}).text


def play(client: TestClient, slug: str, choice: str) -> str:
    """Answers each question of a round with the same choice; the page that follows."""
    page = client.get(f"/topics/{slug}").text
    names = dict.fromkeys(re.findall(r'name="([0-9a-f-]{36})"', page))
    assert len(names) == 5
    return client.post(f"/topics/{slug}", data=dict.fromkeys(names, choice)).text


def row(page: str, title: str) -> list[str]:
    """The numbers beside a topic."""
    table = page.partition(f">{title}</a>")[2].partition("</tr>")[0]
    return re.findall(r'class="number">(\d+)<', table)


def test_a_stranger_is_asked_to_sign_in(client: TestClient) -> None:
    assert "Your name" in client.get("/").text
    assert "Your name" in client.get("/topics/sums").text


def test_a_new_user_has_answered_nothing(client: TestClient) -> None:
    page = sign_in(client)
    assert "Hello, Ada" in page
    assert row(page, "Sums") == ["0", "0"]


def test_a_round_is_scored(client: TestClient) -> None:
    sign_in(client)
    page = play(client, "sums", "0")
    score = re.search(r"(\d) of 5 are right", page)
    assert score is not None
    assert page.count('class="right"') == int(score[1])
    assert row(client.get("/").text, "Sums") == ["5", score[1]]


def test_who_does_not_know_is_not_right(client: TestClient) -> None:
    sign_in(client)
    assert "0 of 5 are right" in play(client, "capitals", "")


def test_the_next_round_asks_other_questions(client: TestClient) -> None:
    sign_in(client)
    asked = [re.findall(r"<legend>(.*)</legend>", client.get("/topics/sums").text)]
    play(client, "sums", "1")
    asked += [re.findall(r"<legend>(.*)</legend>", client.get("/topics/sums").text)]
    assert not {*asked[0]} & {*asked[1]}


def test_a_round_is_shown_as_json_to_its_user_alone(client: TestClient) -> None:
    sign_in(client)
    page = client.get("/topics/sums").text
    names = dict.fromkeys(re.findall(r'name="([0-9a-f-]{36})"', page))
    place = client.post("/topics/sums", data=dict.fromkeys(names, "2")).url.path
    shown = client.get(f"/api{place}").json()
    assert shown["topic"] == "Sums" and len(shown["answers"]) == 5
    assert shown["score"] == sum(answer["right"] for answer in shown["answers"])
    sign_in(client, "Bob")
    assert client.get(place).status_code == client.get(f"/api{place}").status_code == 404


def test_two_users_of_one_name_are_one(client: TestClient) -> None:
    sign_in(client)
    play(client, "times-tables", "3")
    assert row(sign_in(client), "Times tables")[0] == "5"
