"""JSON text of any content and size."""

import json

import pytest

from threedgen.config.plain_file import parse_json


@pytest.mark.parametrize("text", ['[{"a":{"a":{"a":[]}}}]', '{"a":"%s"}' % (40 * "x"), "[1,2,3,4,5,6]"])
def test_json_has_limits(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    monkeypatch.setattr("threedgen.config.plain_file.MAX_VALUES", 4)
    monkeypatch.setattr("threedgen.config.plain_file.MAX_CHARACTERS", 40)
    for form in (text, text.encode()):
        with pytest.raises(ValueError, match="40"):
            parse_json(form)


def test_numbers_out_of_range_are_refused() -> None:
    for number in ("1e400", "-1E+400", "123e999", "[1, 1e9999]", "12345678901234567890", "NaN", "-Infinity"):
        with pytest.raises(ValueError, match="finite|64 bits"):
            parse_json(number)
    for number in ("1e300", "-1E+30", "1234567890123456789", "0.12345678901234567890", "1e-400"):
        assert parse_json(number) == json.loads(number)
