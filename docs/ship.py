"""Puts a trained run's best checkpoint into dias_lab/shipped/, with its test scores.

    python -m dias_lab train --preset scenes --run-dir runs/shipped
    python docs/ship.py runs/shipped
"""

import shutil
import sys

from dias_lab import checkpoint, runs
from dias_lab.config import Config
from dias_lab.evaluate import evaluate

run_dir = runs.resolve(sys.argv[1])
config = Config.load(run_dir)
model = checkpoint.load_model(run_dir)
target = runs.PACKAGE / "shipped"
target.mkdir(exist_ok=True)
scores = evaluate(model, runs.resolve(config.data) / "test.lmdb", seed=config.seed).scores
shutil.copy(run_dir / "checkpoints" / str(model.step) / checkpoint.WEIGHTS, target / checkpoint.WEIGHTS)
runs.write_json(target / "config.json", config.to_dict())
command = "python -m dias_lab train --preset scenes --run-dir runs/shipped && python docs/ship.py runs/shipped"
trained = runs.read_json(run_dir / "metrics.json")
about = {"step": model.step, "seconds": trained["seconds"], "about": trained["about"]}
runs.write_json(target / "metrics.json", {"command": command, "scores": scores, **about})
print(f"wrote {target}: step {model.step}, decoder map's ARI {100 * scores['decoder']['ari']:.1f} on test")
