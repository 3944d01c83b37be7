"""The shell's command run: the ordered notebooks and their gallery."""

from typing import Annotated

import tyro

from dias_lab.book import ordered
from dias_lab.config import Config
from dias_lab.shell import options

OWN = set(ordered.Options.__annotations__)  # the book's; all others are fields of Config
OTHERS = set(Config.field_names()) - OWN
Fields = options.joined({"book": options.group(ordered.Options, OWN), **options.of_parts(OTHERS, as_preset=True)})
DEFAULTS = options.filled(Fields, ordered.Options())


def run(fields: Annotated[Fields, tyro.conf.arg(name="")] = DEFAULTS) -> int:
    """Execute the ordered notebooks and build the HTML gallery (make run ARGS='...').

    What they make is below runs/, in a folder that is named after the options. The same options again repeat only what
    has changed since.
    """
    return ordered.run(ordered.Options(**options.values(fields)))
