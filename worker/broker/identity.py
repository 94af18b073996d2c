"""Who sent a message."""

from worker.settings import Settings


def sender(named: str | None, login: str | None, exchange: str, settings: Settings) -> str | None:
    """The viewer that sent a message, by the login that the broker has verified (the property
    `user_id`), or by the routing key, which names it. None if that is not known.

    MQTT has no verified login. There the broker makes sure that the topic belongs to the login.
    """
    if login:
        return named if named == login else None
    if settings.require_user_id and exchange != settings.mqtt_exchange:
        return None
    return named
