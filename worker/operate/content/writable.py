"""Whether content may be changed: only where its tables are ours."""

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import ContentError
from worker.store import content


async def check_ours(connection: AsyncConnection, *relations: str) -> None:
    """Raises `ContentError` if one of the relations is the application's own."""
    for relation in relations:
        if not await content.is_ours(connection, relation):
            raise ContentError(
                f"{relation} is the application's own, and this program does not write it",
                "make the change in the application.",
            )
