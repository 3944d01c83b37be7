"""What holds for the folder as a whole."""

import subprocess
import sys

from traces import some_clips, some_trace

WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch must not be imported here")
sys.meta_path.insert(0, NoTorch())
from dias_lab.trace import AttentionTrace
from dias_lab.viz import Stream, explore, film, frames, gallery, iterations, use
use()
trace = AttentionTrace.load(sys.argv[1])
gallery(trace), iterations(trace)
clips = AttentionTrace.load(sys.argv[4])
film(clips)._repr_html_(), frames(clips), explore(clips).html()
stream = Stream()
stream.add(clips.images[0], clips.attention[:, 0])
explore(trace).to_html(sys.argv[2])
explore([trace, trace], live=True).to_html(sys.argv[2])
from dias_lab.__main__ import main
sys.exit(main(["explore", sys.argv[1], "--out", sys.argv[2]]) or main(["segments", sys.argv[1], "--out", sys.argv[3]]))
"""


def test_nothing_needs_torch(tmp_path):
    some_trace().save(tmp_path / "x.npz")
    some_clips(clips=1, frames=3).save(tmp_path / "clips.npz")
    command = [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "x.npz", tmp_path / "page.html", tmp_path / "segments", tmp_path / "clips.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 50_000 and (tmp_path / "segments" / "segments.json").exists()


def test_importing_viz_imports_no_plotting():
    code = (
        "import sys, dias_lab.viz; print([name for name in ('plotly', 'matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
