"""The page that listens, in a headless Chromium, finds the word and step of demo.py, from a file and a microphone."""

import math
import re
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from datasets.prepare import digits, speech
from snn import checkpoint, settings
from snn.network import Network
from tests.browser import CHROMIUM, Browser
from tests.conftest import REPOSITORY, assert_one_line

pytest.importorskip("ziglang", reason="needs a C compiler for WebAssembly: pip install ziglang")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
MICROPHONE_HZ = 44_100  # rate at which Chromium's fake microphone passes samples on unchanged
WORDS = range(0, 400, 41)


def write_network(path, **changes):
    """Save a checkpoint whose network decides sometimes early, sometimes late, and for different words."""
    values = settings.read_yaml(REPOSITORY / "configs" / "adlif_digits.yaml")
    values["network"] |= {"layers": ["48FD5"], "neuron": "AdLIF"}
    values["network"]["neuron1"]["theta"] = 0.5
    values["network"]["neuron2"] = {"tau_mem_steps": 40, "tau_syn_steps": 40, "theta": 5}
    values["data"] |= {"test_T": 90} | changes
    cfg = settings.build(values, "the test")
    torch.manual_seed(3)
    network = Network(cfg.network, cfg.data.shape, cfg.data.num_classes).eval()
    with torch.no_grad():
        network.layers[0].linear.weight.mul_(1.5)
        network.output.linear.weight.mul_(6)
    path.parent.mkdir(parents=True)
    names = [word for _, word in digits.WORDS][: cfg.data.num_classes]
    checkpoint.save(path, cfg, network, class_names=names, epoch=0, validation=None)


@pytest.fixture(scope="module")
def words():
    """Return ten spoken words, int16 at MICROPHONE_HZ, without the silence at both ends."""
    said = digits.plan(seed=0, voices=100, utterances=1)[1]
    trimmed = []
    for audio, rate_hz in digits.speak([said[k] for k in WORDS]):
        common = math.gcd(MICROPHONE_HZ, rate_hz)
        audio = resample_poly(audio.astype(np.float64), MICROPHONE_HZ // common, rate_hz // common)
        audio = np.round(audio * 16_000 / np.abs(audio).max()).astype(np.int16)
        heard = np.flatnonzero(np.abs(audio) > speech.SILENCE * np.abs(audio).max())
        trimmed.append(audio[heard[0] : heard[-1] + 1])
    return trimmed


@pytest.fixture
def page(program, tmp_path, request):
    """Open a page whose network pools `request.param` channels, by default 1."""
    write_network(tmp_path / "runs" / "net" / "best.pt", pool=getattr(request, "param", 1))
    result = program("export.py --load_pt_file runs/net --format html --out page.html")
    assert result.returncode == 0, result.stderr
    return tmp_path / "page.html"


def demo_says(program, wav):
    """Return (word, step) from demo.py; the step is None without an output spike."""
    said = program(f"demo.py {wav} --load_pt_file runs/net/best.pt").stdout
    if found := re.search(r"^at ([\d.]+) ms of \d+: (.*)$", said, re.MULTILINE):
        return found[2].strip("'"), round(float(found[1]) / 10)
    return re.search(r"the highest potential decides for (.*)$", said, re.MULTILINE)[1].strip("'"), None


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("page", [1, 5], indirect=True, ids=["as heard", "pooled"])
def test_the_page_says_what_demo_says(program, page, words, tmp_path):
    files = []
    for k, word in enumerate(words):
        files.append(tmp_path / f"word{k}.wav")
        soundfile.write(files[-1], word, MICROPHONE_HZ, subtype="PCM_16")
    expected = [demo_says(program, file) for file in files]
    assert len(set(expected)) > 4
    pause, spoken = np.zeros(MICROPHONE_HZ), tmp_path / "spoken.wav"
    sound = np.concatenate([part for word in words for part in (pause, word / 2**15)] + [pause])
    soundfile.write(spoken, sound, MICROPHONE_HZ, subtype="FLOAT")  # Chromium divides whole numbers by 2**15 - 1
    with Browser(page, tmp_path / "profile", spoken) as browser:
        for k, file in enumerate(files):
            browser.drop(file)
            browser.until(f"results.length == {k + 1}")
        browser.run("document.getElementById('listen').click()")
        browser.until(f"results.length >= {2 * len(files)}")
        said = [(result["word"], result["step"]) for result in browser.run("results")]
        assert said[: len(files)] == expected
        assert said[len(files) : 2 * len(files)] == expected
        assert not browser.log
        rows = browser.run("[...document.querySelectorAll('#heard li')].length")
        assert rows == len(browser.run("results"))
        assert "first spike" in browser.run("document.getElementById('picture').getAttribute('aria-label')")
        for width in (390, 1280):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
            )
            assert browser.run("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_what_cannot_be_heard_is_said_in_a_line(page, tmp_path):
    tone = np.sin(np.arange(40_000)).astype(np.float32)
    soundfile.write(tmp_path / "short.wav", tone[:1000], 22_050)
    soundfile.write(tmp_path / "silent.wav", 0 * tone, 22_050)
    soundfile.write(tmp_path / "law.wav", tone, 8_000, subtype="ULAW")
    soundfile.write(tmp_path / "whole.wav", tone, 8_000)
    (tmp_path / "half.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:40_000])
    (tmp_path / "text.wav").write_text("no sound")
    expected = {
        "short": "lasts 45 ms",
        "silent": "silent",
        "law": "coding 7",
        "half": "is truncated",
        "text": "not a WAV",
    }
    with Browser(page, tmp_path / "profile") as browser:
        for name, why in expected.items():
            browser.drop(tmp_path / f"{name}.wav")
            browser.until(f"document.getElementById('status').textContent.startsWith('{name}.wav: ')")
            assert why in browser.run("document.getElementById('status').textContent")
        browser.run("document.getElementById('listen').click()")
        browser.until("document.getElementById('status').textContent.startsWith('There is no microphone')")
        assert browser.run("results.length") == 0
        assert not browser.log


@needs_chromium
def test_no_permission_for_the_microphone_is_said(page, words, tmp_path):
    soundfile.write(tmp_path / "spoken.wav", words[0], MICROPHONE_HZ)
    with Browser(page, tmp_path / "profile", tmp_path / "spoken.wav", is_permitted=False) as browser:
        browser.run("document.getElementById('listen').click()")
        browser.until("document.getElementById('status').textContent.startsWith('The microphone is not permitted')")


@needs_chromium
def test_sound_is_prepared_as_in_python(page, tmp_path):
    """Resampling, level and ramps of the page equal those of `condition` up to float32's rounding."""
    from datasets.prepare.cochlea import condition

    with Browser(page, tmp_path / "profile") as browser:
        for rate_hz in (8_000, 22_050, 44_100, 48_000):
            audio = np.random.default_rng(rate_hz).normal(0, 0.1, 3_001 + rate_hz // 10).astype(np.float32)
            theirs = browser.run(f"[...condition(Float32Array.from({audio.tolist()}), {rate_hz})]")
            np.testing.assert_allclose(theirs, condition(audio, rate_hz), rtol=0, atol=1e-7)
            pieces = f"""(() => {{
                const r = new Resampler({rate_hz}, 48000), x = Float32Array.from({audio.tolist()}), y = [];
                for (let k = 0; k < x.length; k += 441) y.push(...r.push(x.slice(k, k + 441), k + 441 >= x.length));
                return y; }})()"""
            whole = browser.run(f"[...new Resampler({rate_hz}, 48000).push(Float32Array.from({audio.tolist()}), true)]")
            np.testing.assert_allclose(browser.run(pieces), whole, rtol=0, atol=1e-12)


def test_a_network_that_hears_no_cochlea_is_refused(program, tmp_path):
    write_network(tmp_path / "runs" / "net" / "best.pt", channels=64)
    assert_one_line(program("export.py --load_pt_file runs/net --format html"), "64 channels", "700")
    assert not list((tmp_path / "runs" / "net").glob("*.html"))


def test_a_missing_compiler_is_said(program, tmp_path, monkeypatch):
    write_network(tmp_path / "runs" / "net" / "best.pt")
    monkeypatch.setattr("listen.find_spec", lambda name: None if name == "ziglang" else find_spec(name))
    assert_one_line(program("export.py --load_pt_file runs/net --format html"), "pip install ziglang")


def test_the_page_has_the_window_of_the_test(page):
    assert '"T": 90, ' in page.read_text(encoding="utf-8")


def test_the_page_needs_no_network(page):
    """It holds everything it needs: it has no address, and nothing that would load one."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|\bfetch\(|XMLHttpRequest", text)
