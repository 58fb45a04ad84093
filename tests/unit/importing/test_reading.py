"""Java's .properties, as Properties.load reads them, and nested options as paths."""

from __future__ import annotations

import pytest

from replicator.importing.reading import flat, properties


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # The examples of the documentation of Properties.load.
        ("Truth = Beauty", {"Truth": "Beauty"}),
        (" Truth:Beauty", {"Truth": "Beauty"}),
        ("Truth                    :Beauty", {"Truth": "Beauty"}),
        (
            (
                "fruits                           apple, banana, pear, \\\n"
                "                                 cantaloupe, watermelon, \\\n"
                "                                 kiwi, mango"
            ),
            {"fruits": "apple, banana, pear, cantaloupe, watermelon, kiwi, mango"},
        ),
        ("cheeses", {"cheeses": ""}),
        # The rest of its rules.
        ("# a comment\n! another\n\n  # with blanks\na=b", {"a": "b"}),
        ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("a\\ b\\:c\\=d = e", {"a b:c=d": "e"}),
        ("path=c:\\\\dir\\tx", {"path": "c:\\dir\tx"}),
        ("a=\\u00e9", {"a": "é"}),
        ("a=\\ud83d\\ude00", {"a": "\U0001f600"}),
        ("a=b\\\\\nc=d", {"a": "b\\", "c": "d"}),
        ("a=b\\\n#c", {"a": "b#c"}),
        ("a==b", {"a": "=b"}),
        ("a=1\na=2", {"a": "2"}),
        ("a=b\\", {"a": "b"}),
        ("", {}),
    ],
)
def test_properties(text: str, found: dict[str, str]) -> None:
    assert properties(text) == found


def test_nested_options_become_paths() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": [{"g": 1}]}) == {
        "a.b.c": 1,
        "a.d": [],
        "e": {},
        "f": [{"g": 1}],
    }
