"""Events from packets and pipes reach a network as they come; lost, late and damaged packets are counted."""

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import h5py
import numpy as np
import pytest

from datasets import arrays, live, send
from datasets.prepare.cameras.pieces import Piece
from snn import checkpoint, config, settings
from snn.errors import InputError
from snn.network import Network
from snn.streaming import Stream
from tests.cameras import HIGH, LOW, X, Y, evt2_words, evt21_words, later, some_events
from tests.conftest import REPOSITORY, assert_one_line
from tests.programs import blocks

SENSOR = (16, 20)
E = some_events(600, *SENSOR)
TIMES, UNITS = E[:, 0] - E[0, 0], (E[:, 3] * SENSOR[0] + E[:, 2]) * SENSOR[1] + E[:, 1]
LAYOUT = "t64_x16_y16_on8"
LONG_US = 10_000_000


def encoded(e: np.ndarray, layout: str = LAYOUT) -> bytes:
    if layout in live.ENCODINGS:
        evt3 = [w for t, x, y, p in e.tolist() for w in (HIGH(t >> 12), LOW(t & 4095), Y(y), X(x, p))]
        words = {"evt2": evt2_words, "evt21": evt21_words}.get(layout, lambda e: evt3)(e)
        return np.array(words, np.uint64).astype(live.ENCODINGS[layout][1]).tobytes()
    return live.encoded(Piece(*e.T), layout)


def numbered(number: int, e: np.ndarray) -> bytes:
    return number.to_bytes(4, "little") + encoded(e)


def test_packets_have_the_bytes_that_their_names_say():
    e = np.array([[5, 3, 2, 1]])
    assert encoded(e) == struct.pack("<QHHB", 5, 3, 2, 1)
    assert encoded(e, "t32_x16_y15_on1") == struct.pack("<IHH", 5, 3, 2 << 1 | 1)
    assert encoded(e, "csv") == b"5,3,2,1\n"


@pytest.fixture
def pair():
    """Return a listening socket and a function that sends to it."""
    with live.listen(0) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(receiver.getsockname())
        yield receiver, sender.send


def heard(source: live.Source, number: int = 1, longest_us: int = LONG_US, pause_us: int = 200_000) -> list:
    """Return (times, units) of `number` recordings. Silence ends each at the latest."""
    recordings = source.recordings(longest_us, pause_us)
    made = []
    for _ in range(number):
        chunks = list(next(recordings))
        made.append(tuple(np.concatenate([chunk[k] for chunk in chunks]) for k in (0, 1)))
    return made


@pytest.mark.parametrize("layout", live.LAYOUTS)
def test_packets_of_every_layout_become_times_and_units(pair, layout):
    receiver, put = pair
    for part in np.array_split(E, 7):
        put(encoded(part, layout))
    source = live.Source(receiver, layout, SENSOR)
    ((times, units),) = heard(source)
    assert np.array_equal(times, TIMES)
    assert np.array_equal(units, UNITS)
    assert source.counts == live.Counts(packets=7, events=600)


def test_lost_late_and_damaged_packets_are_counted_and_nothing_else_is_left_out(pair):
    receiver, put = pair
    parts = np.array_split(E, 10)
    for k in (0, 1, 4, 3, 5):  # 2 is lost, 3 comes late
        put(numbered(k, parts[k]))
    put(numbered(5, parts[5][:0]))  # one that has come twice, or is empty, is no loss
    put(b"")
    put(numbered(6, parts[6])[:-1])
    put(numbered(7, np.array([[E[-1, 0], SENSOR[1], 0, 0]])))
    put(numbered(8, parts[8][::-1]))  # any order within a packet
    put(numbered(9, parts[9]))
    source = live.Source(receiver, f"n32_{LAYOUT}", SENSOR)
    ((times, units),) = heard(source)
    there = np.concatenate([TIMES[np.isin(E[:, 0], parts[k][:, 0])] for k in (0, 1, 4, 5, 8, 9)])
    assert np.array_equal(times, np.sort(there))
    assert len(units) == len(times)
    assert source.counts == live.Counts(packets=11, events=len(times), lost=1, late=1, damaged=2)


def test_a_sender_that_begins_anew_is_heard(pair):
    """Its numbers and times start again: between packets, if both step back far, and after silence."""
    receiver, put = pair
    source = live.Source(receiver, f"n32_{LAYOUT}", SENSOR)
    put(numbered(5000, later(E, 5_000_000)))
    put(numbered(0, E))
    made = heard(source, 2)
    assert [times.tolist() for times, _ in made] == [TIMES.tolist()] * 2
    put(numbered(3, E[:10]))
    assert np.array_equal(heard(source)[0][0], TIMES[:10])
    assert source.counts == live.Counts(packets=3, events=1210)


def test_packets_that_this_machine_drops_are_counted(pair):
    receiver, put = pair
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    few = np.repeat(E[:1], 100, axis=0)
    for _ in range(500):
        put(encoded(few))
    source = live.Source(receiver, LAYOUT, SENSOR)
    heard(source)
    put(encoded(few))  # carries what has been dropped
    heard(source)
    assert source.counts.packets < 400
    assert source.counts.packets + source.counts.lost == 501


def test_a_counter_of_32_bits_goes_on(pair):
    receiver, put = pair
    e = later(E, 2**32 - E[300, 0])
    for part in (e[:250], e[250:310], e[310:]):
        put(encoded(part, "t32_x16_y15_on1"))
    ((times, _),) = heard(live.Source(receiver, "t32_x16_y15_on1", SENSOR))
    assert np.array_equal(times, TIMES)


@pytest.mark.parametrize("layout", [name for name in live.LAYOUTS if name in ("csv", LAYOUT, "evt3")])
def test_a_pipe_is_read_as_it_comes(layout):
    content = b"t,x,y,p\n" + encoded(E, layout)[:-1] if layout == "csv" else encoded(E, layout) + b"\1"
    reading, writing = os.pipe()
    pause_us = 10**9  # however long either thread waits for a core

    def write() -> None:
        for k in range(0, len(content), 777):  # in the midst of events
            while int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder):  # not read yet
                time.sleep(0.002)
            os.write(writing, content[k : k + 777])
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reading, "rb") as file:
        source = live.Source(file, layout, SENSOR)
        recordings = source.recordings(LONG_US, pause_us)
        made = [[np.concatenate(part) for part in list(zip(*r, strict=True))[:2]] for r in recordings]
    thread.join()
    ((times, units),) = made
    assert np.array_equal(times, TIMES)
    assert np.array_equal(units, UNITS)
    assert source.counts.packets == -(-len(content) // 777)
    assert source.counts.damaged == (layout != "csv")  # it ends within an event, or within a line that is whole


def test_recordings_end_by_their_length_by_a_gap_and_by_silence(pair):
    receiver, put = pair
    t = np.array([5, 50, 104, 105, 150, 420, 421, 521, 3000])
    e = np.column_stack([t, t % 20, t % 16, t % 2])
    put(encoded(e[:3]))
    put(encoded(e[3:]))
    source = live.Source(receiver, LAYOUT, SENSOR)
    made = [times.tolist() for times, _ in heard(source, 5, longest_us=100, pause_us=200)]
    assert made == [[0, 45, 99], [0, 45], [0, 1], [0], [0]]
    put(encoded(e[:1]))
    assert [times.tolist() for times, _ in heard(source)] == [[0]]
    assert source.counts.late == 0


def test_the_latest_time_there_is_ends_a_recording(pair):
    receiver, put = pair
    t = np.array([5, 2**63 - 1])
    put(encoded(np.column_stack([t, [1, 1], [1, 1], [1, 1]]), "t64_x16_y16_on8"))
    source = live.Source(receiver, "t64_x16_y16_on8", SENSOR)
    assert [times.tolist() for times, _ in heard(source, 2, longest_us=100, pause_us=200)] == [[0], [0]]


def small_network(channels: int) -> tuple[config.Config, Network]:
    cfg = settings.build(settings.read_yaml(REPOSITORY / "configs" / "smoke.yaml"), "x")
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    layers = {"layers": ["8F"], "neuron": "CuLIF", "neuron1": constants, "neuron2": constants}
    cfg = cfg.model_copy(
        update={
            "network": config.Network(**layers),
            "data": cfg.data.model_copy(update={"channels": channels, "num_classes": 3, "dt_ms": 10.0, "T": 40}),
        }
    )
    return cfg, Network(cfg.network, cfg.data.shape, 3)


@pytest.mark.parametrize("layers", [("8F",), pytest.param(("4C3S4", "P2"), marks=pytest.mark.slow)], ids=str)
def test_live_decisions_are_those_of_a_stream_at_once(pair, layers):
    cfg, _ = small_network(640)
    shape = cfg.data.shape if layers == ("8F",) else (2, *SENSOR)
    network = Network(cfg.network.model_copy(update={"layers": layers}), shape, 3)
    streams = [Stream(network, 10.0, 40, ticks_per_second=1e6, stops=False) for _ in range(2)]
    streams[0].push(TIMES, UNITS)
    receiver, put = pair
    for part in np.array_split(E, 20):
        put(encoded(part))
    for chunk in next(live.Source(receiver, LAYOUT, SENSOR).recordings(LONG_US)):
        streams[1].push(chunk.times_us, chunk.units)
    assert streams[1].finish() == streams[0].finish()
    assert streams[1].output_counts.tolist() == streams[0].output_counts.tolist()


def test_what_is_no_such_source_is_refused(pair):
    receiver, put = pair
    with pytest.raises(InputError, match="there is no packet layout 'x'; choose from t64"):
        live.Source(receiver, "x", SENSOR)
    with pytest.raises(InputError, match="through a pipe nothing is lost"):
        live.Source(sys.__stdin__, f"n32_{LAYOUT}", SENSOR)
    port = receiver.getsockname()[1]
    with pytest.raises(InputError, match=rf"UDP port {port}: cannot listen on .*; choose another port"):
        live.listen(port)
    for host in ("no such host", "192.0.2.1", "a" * 70):
        with pytest.raises(InputError, match=r"UDP port 0: cannot listen on .*; choose another host"):
            live.listen(0, host)
    with pytest.raises(InputError, match="UDP port 70000: cannot listen on"):
        live.listen(70000)
    for layout, content, words in (
        (LAYOUT, bytes(8), "8 bytes are not a whole number of events"),
        (LAYOUT, encoded(np.array([[1, 20, 0, 0]])), "pixels lie beyond 16x20"),
        ("csv", b"1,2,3\n", "a line is not t,x,y,p"),
        ("csv", b"what\n", "a line is not t,x,y,p"),
    ):
        put(content)
        with pytest.raises(InputError, match=f"do not fit layout {layout} and this sensor .*{words}.*; name their"):
            heard(live.Source(receiver, layout, SENSOR))


def test_any_bytes_are_heard_without_an_error(pair):
    """The first packet is understood; after it, any bytes are counted and not refused."""
    receiver, put = pair
    random = np.random.default_rng(0)
    for layout in live.LAYOUTS:
        source = live.Source(receiver, layout, SENSOR)
        put(encoded(E[:5], layout))
        for _ in range(200):
            put(random.bytes(random.integers(0, 60)))
        heard(source)
        assert source.counts.packets > 1


def test_a_sender_sends_every_event_of_sets_and_recordings(tmp_path):
    made = [((E[:, 0], E[:, 1], E[:, 2], E[:, 3]), "left"), ((E[50:, 0], E[50:, 1], E[50:, 2], E[50:, 3]), "right")]
    arrays.write(tmp_path / "a.h5", made, time_unit="us", sensor=SENSOR)
    sent = list(send.recordings_of(tmp_path / "a.h5", [1, 0], SENSOR))
    assert [title for title, _ in sent] == ["recording 1 (right)", "recording 0 (left)"]
    assert np.array_equal(np.stack(sent[1][1], 1), E)
    assert np.array_equal(np.concatenate([np.stack(p, 1) for p in send.packets(sent[1][1])]), E)
    assert max(len(p.t) for p in send.packets(Piece(*np.repeat(E, 300, axis=0).T))) == send.MOST_EVENTS
    (tmp_path / "a.csv").write_text("t_us,x,y,p\n" + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in E))
    ((_, events),) = send.recordings_of(tmp_path / "a.csv", None, SENSOR)
    assert np.array_equal(np.stack(events, 1), E)
    (tmp_path / "b.csv").write_text("t,x,y,p\n" + "".join(f"{1000 * t},{x},{y},{p}\n" for t, x, y, p in E))
    ((_, events),) = send.recordings_of(tmp_path / "b.csv", None, SENSOR, "ns")
    assert np.array_equal(np.stack(events, 1), E)
    with pytest.raises(InputError, match="--time-unit"):
        list(send.recordings_of(tmp_path / "b.csv", None, SENSOR))
    (tmp_path / "c.csv").write_text("t_us,x,y,p\n1000,1,1,1\n500,1,1,0\n1500,2,2,1\n")
    with pytest.raises(InputError, match=r"goes back in time at event 1, from 1000 to 500 µs; .* --sort"):
        list(send.recordings_of(tmp_path / "c.csv", None, SENSOR))
    with pytest.raises(InputError, match="there is no recording 2; choose 0 to 1"):
        list(send.recordings_of(tmp_path / "a.h5", [2], SENSOR))
    with pytest.raises(InputError, match="give the camera's size with --sensor"):
        list(send.recordings_of(tmp_path / "a.h5", None, (2, 2)))


def test_a_sender_takes_sets_with_few_names_and_refuses_wrong_ones(tmp_path):
    path = tmp_path / "a.h5"
    arrays.write(path, [((E[:, 0], E[:, 1], E[:, 2], E[:, 3]), name) for name in "ab"], time_unit="us", sensor=SENSOR)
    with h5py.File(path, "a") as file:
        del file["extra/keys"]
        file["extra/keys"] = np.array(["a"], dtype="S")
    assert [title for title, _ in send.recordings_of(path, None, SENSOR)] == [
        "recording 0 (a)",
        "recording 1 (class 1)",
    ]
    with h5py.File(path, "a") as file:
        del file["spikes/units"]
        file.create_dataset("spikes/units", (2,), h5py.vlen_dtype(np.float32))
    with pytest.raises(InputError, match="spikes/units holds float32, not lists of whole numbers"):
        list(send.recordings_of(path, None, SENSOR))
    (tmp_path / "a.csv").write_text("t_us,x,y,p\n")
    with pytest.raises(InputError, match=r"a\.csv: holds no events"):
        list(send.recordings_of(tmp_path / "a.csv", None, SENSOR))


@pytest.mark.slow
def test_the_demo_decides_on_what_the_sender_sends(program, tmp_path, launch):
    """By UDP and through a pipe, the decisions are those of the network on the same recordings."""
    random = np.random.default_rng(0)
    made = [((np.sort(random.uniform(0, 0.2, 60)), random.integers(0, 40, 60)), r % 3) for r in range(3)]
    arrays.write(tmp_path / "mine.h5", made, time_unit="s", channels=40)
    cfg, network = small_network(40)
    checkpoint.save(tmp_path / "best.pt", cfg, network, epoch=1, validation={})
    stream, expected = Stream(network, 10.0, 40, cfg.data.T_empty, ticks_per_second=1e6), []
    for (times_s, channels), _ in made:
        times_us = np.rint(times_s * 1e6).astype(np.int64)
        stream.reset()
        decision = stream.push(times_us - times_us[0], channels) or stream.finish()
        at = f"at {decision.time_ms:g} ms" if decision.step else "by the highest potential"
        expected.append(f"class {decision.label} {at}")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    demo = [sys.executable, f"{REPOSITORY}/demo.py", "--load_pt_file", "best.pt"]
    page = [line.split("#")[0].strip() for line in blocks("my_data.md", "sh")[0].splitlines()]
    assert page[0] == "python demo.py --udp 3333"

    def decisions(said: str) -> list[str]:
        return [line.split(": ")[1].split(",")[0] for line in said.splitlines() if line.startswith("recording")]

    with live.listen(0) as free:
        port = free.getsockname()[1]
    about = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE}
    # On a busy machine the sender may be silent for longer than 0.2 s. Here 1.5 s end a recording, and it takes five
    # times as long, as does the pause after it.
    (tmp_path / "patient.py").write_text(
        "import runpy, sys\nfrom datasets import live\n"
        "live.Source.recordings.__defaults__ = (1_500_000,)\n"
        "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    patient = [demo[0], "patient.py", *demo[1:]]
    process = launch([*patient, "--udp", str(port)], stderr=subprocess.STDOUT, **about)
    said = ""

    def more() -> str:
        assert select.select([process.stdout], [], [], 600)[0], said
        content = os.read(process.stdout.fileno(), 2**16).decode()
        assert content, said
        return content

    try:
        while "waiting for events" not in said:
            said += more()
        words = page[1].removeprefix("python ").replace("data/digits/digits_test.h5", "mine.h5")
        result = program(words.replace("3333", str(port)), "--speed", 0.2)
        assert result.returncode == 0, result.stderr
        assert "sending recording 2 (class 2)" in result.stderr
        while len(decisions(said)) < 3:
            said += more()
    finally:
        process.send_signal(signal.SIGINT)
        said += process.communicate()[0].decode()
    assert process.returncode == 130
    assert decisions(said) == expected
    assert "0 lost, 0 late, 0 damaged" in said
    pipe = page[2].replace("data/digits/digits_test.h5", "mine.h5 --speed 5000").replace("python", sys.executable)
    pipe = pipe.replace("demo.py", f"{REPOSITORY}/demo.py --load_pt_file best.pt")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", pipe], stderr=subprocess.PIPE, check=False, text=True, **about
    )
    assert done.returncode == 0, done.stderr
    assert decisions(done.stdout) == expected
    assert_one_line(program("demo.py --load_pt_file best.pt --udp 70000"), "UDP port 70000: cannot listen on")
    assert_one_line(program("demo.py --load_pt_file best.pt --udp 3333 --host 192.0.2.1"), "cannot listen on 192.0.2.1")
    (tmp_path / "a.bin").write_bytes(bytes(5))  # an event
    for words, fault in (
        ("mine.h5 --time-unit s", "has its times in s; leave --time-unit out"),
        ("mine.h5 --stdout --host 192.0.2.1", "--host is for --udp"),
        ("a.bin --sensor 34x34 --time-unit s", "a.bin: states the unit of its times; leave --time-unit out"),
        ("a.bin --sensor 34x34 --recordings 0", "a.bin: is a single recording; leave --recordings out"),
    ):
        assert_one_line(program(f"-m datasets.send {words}"), fault)


def test_faery_has_the_layouts_that_are_read_here():
    faery = pytest.importorskip("faery")
    assert set(faery.enums.UdpFormat.__args__) == set(live.RECORDS)
    assert faery.EVENTS_DTYPE.itemsize == live.RECORDS[LAYOUT].itemsize
