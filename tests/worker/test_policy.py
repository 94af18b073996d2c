"""The policy is made from the settings in one place, which must not forget any of them."""

from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from worker.domain.policy import Policy
from worker.settings import Settings

# The settings whose name or unit is another than the policy's.
_SETTING = {"default_deny": "require_user_id"}


def _settings(**changed: Any) -> Settings:
    return Settings(
        database_url=SecretStr("postgresql://unused"),
        amqp_url=SecretStr("amqp://unused"),
        **changed,
    )


def test_the_settings_and_the_policy_have_the_same_defaults() -> None:
    # A policy without an operator denies nobody.
    assert _settings(require_user_id=True).policy() == Policy(default_deny=True)


@pytest.mark.parametrize("field", Policy._fields)
def test_each_field_of_the_policy_follows_its_setting(field: str) -> None:
    name = _SETTING.get(field, field)
    before = getattr(_settings(), name)
    after = (
        before + timedelta(days=1)
        if isinstance(before, date)
        else not before
        if isinstance(before, bool)
        else before[1:]
        if isinstance(before, tuple)
        else before + 1
    )
    differing = {
        each
        for each, one, other in zip(
            Policy._fields,
            _settings().policy(),
            _settings(**{name: after}).policy(),
            strict=True,
        )
        if one != other
    }
    assert differing == {field}
