"""warmup: after it, nothing that it was asked for compiles; and what it refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv import cli
from numba_ctconv.warmup import SHAPES, Sizes

USE = """
import numpy as np
import numba_ctconv as nc
from numba.core import event
layer = nc.ConvTranspose1d(3, 4, 4, stride=2, padding=1)
made = event.RecordingListener()
with event.install_listener("numba:compile", made):
    for length in (1, 2, 3, 17, 63, 300):
        x = np.ones((2, 3, length), np.float32)
        y = layer(x)
        nc.conv_transpose1d(x, layer.weight, layer.bias, 2, 1)
        layer.backward(y, x)
    layer.weight = np.full_like(layer.weight, np.inf)
    layer.backward(layer(x), x)
    layer.backward(y, x * np.nan)
print(len(made.buffer))
"""


@pytest.fixture
def steps():
    """What a progress callable is told."""
    return []


@pytest.fixture
def layer():
    return nc.ConvTranspose1d(3, 4, 4, stride=2)


def run(*arguments, folder):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_process_compiles_nothing_after_warmup(tmp_path):
    """Neither at other lengths and batches, nor through the function, nor where an operand is not finite."""
    warm = "import numba_ctconv as nc; nc.warmup([nc.ConvTranspose1d(3, 4, 4, stride=2)], dtypes=['float32'])"
    run("-c", warm, folder=tmp_path)
    assert run("-c", USE, folder=tmp_path) == "0\n"


def test_progress_names_each_layer_and_dtype(layer, steps):
    other = nc.ConvTranspose1d(3, 4, 4, stride=2, padding=1)  # needs the same code
    nc.warmup([layer, other], progress=lambda *step: steps.append(step))
    text = "3 to 4 channels, kernel_size=4, stride=2, groups=1, dilation=1"
    assert steps == [(f"{text}, float32", 0, 2), (f"{text}, float64", 1, 2), ("", 2, 2)]


def test_only_what_is_asked_for_is_run(layer, monkeypatch):
    called = []
    monkeypatch.setattr(nc.ConvTranspose1d, "__call__", lambda self, x: called.append((self.dtype, x.shape)))
    monkeypatch.setattr(nc.ConvTranspose1d, "backward", lambda *_, needs: called.append(needs))
    nc.warmup([layer], passes=["forward"], dtypes=[np.float64])
    assert called == [(np.float64, (n, 3, length)) for n, length in (*SHAPES, (1, 1))]
    called.clear()
    nc.warmup([layer], passes=["grad_weight"], dtypes=["float32"])
    assert set(called) == {("weight", "bias")}


def test_the_layer_is_left_alone(layer):
    before = layer.state_dict()
    nc.warmup([layer], passes=["forward"])
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_published_layers_are_the_default(monkeypatch, steps):
    monkeypatch.setattr(nc.ConvTranspose1d, "__call__", lambda *_: None)
    nc.warmup(passes=["forward"], dtypes=["float32"], progress=lambda *step: steps.append(step))
    assert any(text.startswith("256 to 128 channels, kernel_size=16, stride=8") for text, _, _ in steps)
    assert 10 < steps[-1][1] == steps[-1][2] < 40


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": 3}, TypeError, "`layers` must be an iterable; got layers=3"),
        ({"layers": [3]}, TypeError, "`layers` must be an iterable of ConvTranspose1d; got layers=3"),
        ({"passes": "forward"}, TypeError, "`passes` must be an iterable; got passes='forward'"),
        ({"passes": ["grad_bias"]}, ValueError, '`passes` must be one of "forward", "grad_input", "grad_weight"; got'),
        ({"dtypes": "float32"}, TypeError, "`dtypes` must be an iterable; got dtypes='float32'"),
        ({"dtypes": ["int8"]}, TypeError, "`dtype` must be float32 or float64"),
        ({"device": "tpu"}, ValueError, '`device` must be one of "cpu", "cuda"; got'),
    ],
)
def test_what_is_refused(arguments, error, message, steps):
    with pytest.raises(error) as refusal:
        nc.warmup(**arguments, progress=lambda *step: steps.append(step))
    assert str(refusal.value).startswith(message)
    assert steps == []


def test_sizes_of_a_layer():
    layer = nc.ConvTranspose1d(6, 4, 5, stride=3, groups=2, dilation=2, algorithm="gather")
    assert Sizes.of(layer) == Sizes(6, 4, 5, 3, 2, 2, "gather")


def test_the_command_fills_the_folder_and_names_it(tmp_path):
    arguments = ("-m", "numba_ctconv", "warmup", "encodec_24k/up1", "--pass", "forward", "--dtype", "float32")
    out = run(*arguments, folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert f"1 layers in float32: all code compiled, kept in {folder}" in out
    kept = {path.name for path in folder.iterdir()}
    assert kept
    run(*arguments, folder=tmp_path)
    assert {path.name for path in folder.iterdir()} == kept


def test_the_command_refuses_a_row_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["warmup", "nothing*"])
    assert leave.value.code == 2
    assert "no row matches 'nothing*'" in capsys.readouterr().err
