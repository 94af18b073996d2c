"""Derived ids equal the standard library's."""

from uuid import UUID, uuid5

from hypothesis import given
from hypothesis import strategies as st

from worker.domain.ids import derived_id


@given(st.uuids(), st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_an_id_is_the_name_based_uuid_of_the_standard(namespace: UUID, name: str) -> None:
    derived, standard = derived_id(namespace, name), uuid5(namespace, name)
    assert (derived, hash(derived), str(derived)) == (standard, hash(standard), str(standard))
    assert derived.version == 5
