"""Events from packets and pipes reach a network as they come."""

import io
import socket
import struct
import threading

import numpy as np
import pytest

from datasets import live
from snn import config
from snn.errors import InputError
from snn.network import Network
from snn.streaming import Stream
from tests.test_prepare_cameras import some_events

SENSOR = (16, 20)
E = some_events(600, *SENSOR)
UNITS = (E[:, 3] * SENSOR[0] + E[:, 2]) * SENSOR[1] + E[:, 1]


def packet(layout: str, e: np.ndarray) -> bytes:
    rows = np.zeros(len(e), live.LAYOUTS[layout])
    rows["t"], rows["x"] = e[:, 0], e[:, 1]
    if layout == "t64_x16_y16_on8":
        rows["y"], rows["on"] = e[:, 2], e[:, 3]
    else:
        rows["y_on"] = e[:, 2] << 1 | e[:, 3]
    return rows.tobytes()


def test_packets_have_the_bytes_that_their_names_say():
    assert packet("t64_x16_y16_on8", np.array([[5, 3, 2, 1]])) == struct.pack("<QHHB", 5, 3, 2, 1)
    assert packet("t32_x16_y15_on1", np.array([[5, 3, 2, 1]])) == struct.pack("<IHH", 5, 3, 2 << 1 | 1)


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def sent(port: int, packets: list[bytes], layout: str) -> list:
    """The chunks that come while another thread sends: the first packet again and again, until it has been heard."""
    heard = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not heard.wait(0.01):
                sender.sendto(packets[0], ("127.0.0.1", port))
            for content in packets[1:]:
                sender.sendto(content, ("127.0.0.1", port))
                heard.wait(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    made = []
    try:
        for chunk in live.from_udp(port, layout, SENSOR, quiet_s=1.0):
            heard.set()
            made.append(chunk)
    finally:
        heard.set()
        thread.join()
    return made


@pytest.mark.parametrize("layout", live.LAYOUTS)
def test_packets_become_times_and_units_and_late_ones_are_left_out(port, layout):
    late = packet(layout, E[:50])
    packets = [packet(layout, part) for part in np.array_split(E[1:], 5)]
    packets = [packet(layout, E[:1]), *packets[:2], late, *packets[2:]]
    made = sent(port, packets, layout)
    times, units = (np.concatenate(parts) for parts in zip(*[c for c in made if len(c[0]) > 1], strict=True))
    assert np.array_equal(times, E[1:, 0] - E[0, 0])
    assert np.array_equal(units, UNITS[1:])


def test_a_counter_of_32_bits_goes_on():
    e = E.copy()
    e[:, 0] += 2**32 - e[300, 0]
    reader = live._Reader("t32_x16_y15_on1", SENSOR, "x")
    made = [reader(packet("t32_x16_y15_on1", part)) for part in (e[:250], e[250:310], e[310:])]
    assert np.array_equal(np.concatenate([times for times, _ in made]), e[:, 0] - e[0, 0])


class Slow(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read1(self, size: int = -1) -> bytes:
        return self.read(7)


def test_a_pipe_is_read_as_it_comes():
    chunks = list(live.from_pipe(Slow(packet("t64_x16_y16_on8", E)), "t64_x16_y16_on8", SENSOR))
    assert len(chunks) > 100
    times, units = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    assert np.array_equal(times, E[:, 0] - E[0, 0])
    assert np.array_equal(units, UNITS)


def test_events_of_packets_reach_a_network(port):
    constants = config.NeuronParams(tau_mem_steps=5, tau_syn_steps=5, theta=0.1)
    network = Network(config.Network(layers=["8F"], neuron="CuLIF", neuron1=constants, neuron2=constants), (640,), 3)
    streams = [Stream(network, 10.0, 40, ticks_per_second=1e6, stops=False) for _ in range(2)]
    streams[0].push(E[:, 0] - E[0, 0], UNITS)
    layout = "t64_x16_y16_on8"
    first, *others = sent(port, [packet(layout, part) for part in np.array_split(E, 20)], layout)
    for chunk in (first, *[chunk for chunk in others if chunk[0][-1] > first[0][-1]]):  # the first came repeatedly
        streams[1].push(*chunk)
    assert streams[1].finish() == streams[0].finish()
    assert streams[1].output_counts.tolist() == streams[0].output_counts.tolist()


def test_what_is_no_such_packet_is_refused(port):
    with pytest.raises(InputError, match="there is no layout 'x'; known are t64"):
        next(live.from_udp(port, "x", SENSOR))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        with pytest.raises(InputError, match=f"UDP port {port}: cannot be listened to"):
            next(live.from_udp(port, "t64_x16_y16_on8", SENSOR))
    with pytest.raises(InputError, match="a packet of 8 bytes is no whole number of events of t64_x16_y16_on8"):
        sent(port, [bytes(8)], "t64_x16_y16_on8")
    for content in (packet("t64_x16_y16_on8", E[[5, 2]]), packet("t64_x16_y16_on8", np.array([[1, 20, 0, 0]]))):
        with pytest.raises(InputError, match="go back in time, or lie beyond the sensor of 16x20 pixels"):
            list(live.from_pipe(io.BytesIO(content), "t64_x16_y16_on8", SENSOR))
    with pytest.raises(InputError, match="ends within an event"):
        list(live.from_pipe(io.BytesIO(packet("t64_x16_y16_on8", E[:3])[:-1]), "t64_x16_y16_on8", SENSOR))
    assert list(live.from_udp(port, "t64_x16_y16_on8", SENSOR, quiet_s=0.05)) == []


def test_faery_sends_what_is_read_here(port):
    """The layouts are those of its own receiver: it reads our packets as we do."""
    faery = pytest.importorskip("faery")
    assert set(faery.enums.UdpFormat.__args__) == set(live.LAYOUTS)
    assert faery.EVENTS_DTYPE.itemsize == live.LAYOUTS["t64_x16_y16_on8"].itemsize
