from __future__ import annotations

import re

from registration import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    documented = re.findall(r"\b([A-Z]\w+Error)\b", errors.__doc__ or "")
    defined = [name for name, value in vars(errors).items() if isinstance(value, type)]

    assert sorted(documented) == sorted(defined)
    assert all(issubclass(vars(errors)[name], errors.RegistrationError) for name in defined)


def test_depth_in_the_docstring_is_the_depth_in_the_code() -> None:
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"\s*(\|  )?\+- (\w+)", line)
        if found:
            kind = vars(errors)[found[2]]
            assert len(kind.__mro__) - len(errors.RegistrationError.__mro__) == (2 if found[1] else 1), line
