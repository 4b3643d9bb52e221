"""What people run: the up-sampling stack of a vocoder, and an inverse STFT as one transposed convolution."""

import pathlib
import wave

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.published import layers

SPEECH = pathlib.Path(__file__).parent / "data" / "speech.wav"  # 16 kHz, 16 bit, mono


def hifigan_v1(rng):
    """The four up-sampling layers of HiFi-GAN V1: 8 · 8 · 2 · 2 = 256 samples a frame."""
    rows = [row for row in layers() if row["id"].startswith("hifigan_v1/")]
    return [nc.ConvTranspose1d(r["cin"], r["cout"], r["k"], r["s"], r["p"], rng=rng) for r in rows]


def leaky(x):
    return np.where(x > 0, x, np.float32(0.1) * x)


def test_hifigan_upsampling_from_frames_to_samples_and_back():
    rng = np.random.default_rng(0)
    stack = hifigan_v1(rng)
    frames = 24
    inputs, x = [], rng.standard_normal((1, 512, frames)).astype(np.float32)
    for layer in stack:
        inputs.append(leaky(x))
        x = layer(inputs[-1])
    assert x.shape == (1, 32, 256 * frames)

    gradient = rng.standard_normal(x.shape).astype(np.float32)
    for layer, seen in zip(reversed(stack), reversed(inputs), strict=True):
        parameters = {"stride": layer.stride, "padding": layer.padding}
        gradients = layer.backward(gradient, seen)
        assert [g.shape for g in gradients] == [seen.shape, layer.weight.shape, layer.bias.shape]
        where = [np.stack([rng.integers(0, n, 400) for n in g.shape], 1) for g in gradients]
        sampled = reference.conv_transpose1d_backward(gradient, seen, layer.weight, **parameters, at=tuple(where))
        for result, at, exact in zip(gradients, where, sampled, strict=True):
            scale = np.sqrt(np.mean(exact**2))
            np.testing.assert_allclose(result[tuple(at.T)], exact, rtol=0, atol=3e-5 * scale)
        at = np.stack([rng.integers(0, n, 400) for n in gradient.shape], 1)
        exact = reference.conv_transpose1d(seen, layer.weight, layer.bias, **parameters, at=at)
        np.testing.assert_allclose(layer(seen)[tuple(at.T)], exact, rtol=0, atol=1e-5)
        gradient = gradients.input * np.where(seen > 0, 1, 0.1).astype(np.float32)
    assert gradient.shape == (1, 512, frames)
    assert np.all(np.isfinite(gradient))


def read_speech():
    with wave.open(str(SPEECH), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
def test_inverse_stft_is_one_transposed_convolution(algorithm):
    size, hop = 1024, 256
    speech = read_speech()
    assert 16_000 <= speech.size <= 32_000
    assert np.abs(speech).max() > 0.1
    padded = np.pad(speech, (size, size + (-speech.size) % hop))
    window = np.hanning(size + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    spectrum = np.fft.rfft(frames * window)  # (frames, bins)

    # each real and imaginary part is a channel, its tap values the windowed wave that it stands for
    bins = spectrum.shape[1]
    unit = np.concatenate([np.eye(bins), 1j * np.eye(bins)])
    basis = (np.fft.irfft(unit, size) * window)[:, None].astype(np.float32)  # (2·bins, 1, size)
    channels = np.concatenate([spectrum.real, spectrum.imag], 1).T.astype(np.float32)  # (2·bins, frames)

    overlapped = nc.conv_transpose1d(channels, basis, stride=hop, algorithm=algorithm)[0]
    envelope = nc.conv_transpose1d(np.ones((1, len(frames))), (window**2)[None, None], stride=hop, algorithm=algorithm)[
        0
    ]
    start = slice(size, size + speech.size)
    np.testing.assert_allclose(overlapped[start] / envelope[start], speech, rtol=0, atol=1e-5)
