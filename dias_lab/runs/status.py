"""How a run stands, read off its files (config.json, metrics.json, error.json, lock), and one table of many runs."""

from pathlib import Path

from dias_lab.files import read_json
from dias_lab.runs.lock import holder
from dias_lab.runs.places import resolve, short


def state(run_dir) -> str:
    """ "done", "running", "failed" or "todo", derived from the files.

    done: metrics.json, with no error.json after it; where a grid made the directory (run.json), the executed notebook's
    outcome.json as well. running: the lock of a live process. failed: error.json, with no config.json after it. Else
    todo: never started, or killed and ready to be resumed.
    """
    files = [Path(run_dir, name) for name in ("config.json", "metrics.json", "error.json", "run.json", "outcome.json")]
    times = {path.name: path.stat().st_mtime_ns for path in files if path.exists()}
    error = times.get("error.json", -1)
    executed = "outcome.json" in times or "run.json" not in times
    if executed and times.get("metrics.json", -1) > error:
        return "done"
    if holder(Path(run_dir) / "lock"):
        return "running"
    return "failed" if error >= 0 and error >= times.get("config.json", -1) else "todo"


def collect(folder="runs"):
    """One row per run below `folder` (a directory with config.json or run.json), as a pandas DataFrame.

    Columns: run (path below the project), state, problem; variant, seed and the parameters of a grid's run; the fields of
    Config; those of metrics.json with dots ("scores.decoder.ari", "scores.protocol", "about.commit", "about.device",
    "about.versions.torch"; "metrics.steps" where a field has the name already); those of outcome.json: run_seconds (wall
    time of the whole notebook) and peak_memory (bytes); and of scores/*.json ("test-dias.decoder.ari"). A file that
    cannot be read makes its run "failed" with the reason in `problem`.
    """
    import pandas

    folders = {path.parent for name in ("config.json", "run.json") for path in resolve(folder).rglob(name)}
    return pandas.DataFrame(map(row, sorted(folders)), columns=None if folders else ["run", "state", "problem"])


def row(run_dir: Path) -> dict:
    """What `collect` says of one run."""
    row = {"run": short(run_dir), "state": state(run_dir), "problem": None}

    def read(path: Path) -> dict:
        try:
            return dict(read_json(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            row.update(state="failed", problem=f"{path.name}: {error}")
            return {}

    if row["state"] == "failed" and (error := read(run_dir / "error.json")):
        row["problem"] = f"{error.get('ename')}: {error.get('evalue')}"
    made = read(run_dir / "run.json")
    given = made.get("parameters")
    row.update({name: made[name] for name in ("variant", "seed") if name in made} | (given if isinstance(given, dict) else {}))
    row.update(read(run_dir / "config.json"))
    for key, value in flat(read(run_dir / "metrics.json")).items():
        row[f"metrics.{key}" if key in row else key] = value
    for key, value in flat(read(run_dir / "outcome.json")).items():
        row.setdefault(key, value)
    for path in sorted((run_dir / "scores").glob("*.json")):
        row.update({f"{path.stem}.{key}": value for key, value in flat(read(path)).items()})
    return row


def flat(value: dict) -> dict:
    """A dict of dicts as one dict, its keys joined by dots."""
    import pandas

    return pandas.json_normalize(value).to_dict("records")[0]
