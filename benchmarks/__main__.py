"""All benchmarks: python -m benchmarks [NAME...]. Prints a table and writes runs/bench.json.

A benchmark is a module of this folder with `rows()`, which gives a list of {name, precision, device, seconds,
comparator_seconds, ratio, flops, bytes, threads, versions}. Ratios within one run are what to compare; seconds depend on
the machine.
"""

import importlib
import pkgutil
import sys

import pandas

import benchmarks
from dias_lab import runs

SHOWN = ["name", "precision", "device", "threads", "seconds", "comparator_seconds", "ratio", "spread", "of_product", "of_copy"]


def main(names: list[str]) -> int:
    known = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_")]
    if unknown := set(names) - set(known):
        print(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    rows, failed = [], False
    for name in names or known:
        try:
            rows += importlib.import_module(f"benchmarks.{name}").rows()
        except Exception as error:  # the others still count
            print(f"failed    {name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
    path = runs.resolve("runs/bench.json")
    runs.write_json(path, rows)
    print(pandas.DataFrame(rows).reindex(columns=SHOWN).to_string(index=False, float_format="{:.4g}".format))
    print(f"wrote {runs.short(path)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
