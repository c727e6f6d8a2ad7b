"""YAML as people expect it: `1e-3` is a number, `4:20` is not, and no key stands twice in a mapping."""

from __future__ import annotations

import re
from typing import Any

import yaml

from s2tdpt.errors import RecipeError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Knows both kinds of number, and so quotes every text that one of them would read as a number."""


# PyYAML follows YAML 1.1, where 1e-3 is text, 4:20 is 260 (base 60) and 010 is 8. These are YAML 1.2's numbers.
_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)$",
    "tag:yaml.org,2002:float": r"""(?x) ( [-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)? | [-+]?[0-9]+[eE][-+]?[0-9]+
        | [-+]?\.(inf|Inf|INF) | \.(nan|NaN|NAN) )$""",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def parse(text: str, source: str) -> Any:
    """Plain values from YAML text; RecipeError in one line, with the line number, where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None


def dump(values: Any) -> str:
    """Plain values as YAML text that `parse` reads back exactly, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
