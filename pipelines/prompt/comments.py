"""Comments in a prompt.

written            read
cat # tail         `cat ` and a line break
color #ff0000      `color ` and a line break: a # needs nothing before it
a\\n# line\\nb       a\\nb
"""

import re


_COMMENT_LINE = re.compile(r"(?:\A|\n)#[^\n]*(?:\n|\Z)")
_COMMENT_TAIL = re.compile(r"#[^\n]*(?:\n|\Z)")


def strip_comments(text: str) -> str:
    """`text` without its comments, each replaced by a line break.

    Whole lines go first, together with the line break before them. Matches do not overlap, so of two comment lines in
    a row the second one leaves an empty line, as in the webui.

    >>> strip_comments("a cat # mine\\n# (not a dog)\\nsitting")
    'a cat \\nsitting'
    """
    return _COMMENT_TAIL.sub("\n", _COMMENT_LINE.sub("\n", text))
