"""Print the source that a neuron is compiled from: python -m snn.ops.show AdLIF [--backend cuda | c]."""

from snn import cli
from snn.neurons import NEURONS
from snn.ops import printer


def main() -> None:
    parser = cli.OneLineParser(prog="python -m snn.ops.show", description=__doc__)
    parser.add_argument("neuron", choices=NEURONS)
    parser.add_argument("--backend", choices=("cpu", "cuda", "c"), default="cpu", help="whose source (cpu)")
    arguments = parser.parse_args()
    neuron = NEURONS[arguments.neuron]
    learned = frozenset(name for name, value in neuron.values_of().items() if value.learned)
    if arguments.backend == "c":
        print("\n\n".join(printer.c(neuron.dynamics_of())[:2]))
    else:
        print((printer.numba if arguments.backend == "cpu" else printer.cuda)(neuron.dynamics_of(), learned))


if __name__ == "__main__":
    cli.run(main)
