"""Runs the migrations of the application."""

import asyncio
from logging.config import fileConfig

from alembic import context
from quiz.database import engine
from quiz.models import Base
from sqlalchemy import Connection

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def online() -> None:
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()


asyncio.run(online())
