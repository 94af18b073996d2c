"""The database of the application."""

import os
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(os.environ["QUIZ_DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def session() -> AsyncIterator[AsyncSession]:
    """One transaction for each request. With the scope `function` it commits before the answer."""
    async with sessions() as database, database.begin():
        yield database
