"""Reading and writing of YAML, with stricter rules than the YAML 1.1 of PyYAML.

Only true and false are booleans (`no` and `on` are text). `1e4` is a number. Octal and sexagesimal numbers and dates
are text. Repeated keys, tags, anchors and aliases are errors, so that an untrusted file can neither create objects nor
expand in memory.
"""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes, unicode_encoding

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 20_000
MAX_DIGITS = 1000  # of a number

_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_RULES = {
    "tag:yaml.org,2002:bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+\Z"), "-+0123456789"),
    "tag:yaml.org,2002:float": (_FLOAT, "-+.0123456789"),
    "tag:yaml.org,2002:null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
}


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = nodes = 0

    def compose_node(self, parent: object, index: object) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors and aliases are not allowed", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"the tag {event.tag} is not allowed", event.start_mark)
        self.depth += 1
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} keys and values, which no config has", event.start_mark)
        if self.depth > MAX_DEPTH:
            raise _refusal("nested too deeply", event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def text(self, node: yaml.ScalarNode) -> str:
        # joins surrogate pairs: JSON, a subset of YAML, uses them for characters above U+FFFF
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _refusal(f"a number has more than {MAX_DIGITS} digits", node.start_mark)
        return int(node.value)  # 012 is decimal

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, bool) or not isinstance(key, (str, int, float)):
                raise _refusal("a key must be text or a number", key_node.start_mark)
            if key in result:
                raise _refusal(f"the key '{key}' is given twice", key_node.start_mark)
            result[key] = self.construct_object(value_node, deep=True)
        return result


class _Dumper(yaml.SafeDumper):
    # quotes text that `_Loader`, or PyYAML with its own loader, would not read as text
    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'  # other styles fold or lose line breaks
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


for _tag, (_pattern, _first) in _RULES.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))
_Dumper.add_representer(str, _Dumper.text)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def parse(text: str, where: str) -> Any:
    """Parse one YAML document to dicts, lists, str, numbers, bool and None.

    Raises ConfigError if it is invalid. The message starts with `where`, the name of the source such as a file, and the
    line.
    """
    return copy.deepcopy(_parse(text, where))


@functools.lru_cache(maxsize=256)  # a run reads its config several times, a batch those of all its jobs
def _parse(text: str, where: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise ConfigError(f"{where}{line}: {problem}") from error
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def read(path: Path) -> Any:
    """Return the content of a YAML file, parsed to dicts, lists, str, numbers, bool and None.

    The text is UTF-8, or UTF-16 with a byte order mark. Raises ConfigError if the file cannot be read, is invalid,
    or is larger than 1 MB (MAX_BYTES).
    """
    try:
        data = read_bytes(path, MAX_BYTES)
        text = data.decode(unicode_encoding(data))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return parse(text, str(path))


def write(data: object, ascii_only: bool = False) -> str:
    """Return plain data (dicts, lists, str, numbers, bool, None) as YAML; `parse` returns equal data.

    `ascii_only`: escape all characters outside ASCII.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=100)


def write_line(data: object) -> str:
    """Return plain data as YAML on one line, such as "{a: 1, b: [x, y]}"."""
    options: Any = {"sort_keys": False, "allow_unicode": True, "default_flow_style": True, "width": 10**9}
    return str(yaml.dump(data, Dumper=_Dumper, **options)).removesuffix("...\n").rstrip("\n")
