"""First-spike coded spiking neural networks. Import from the submodules: `from snn.neurons import AdLIF`."""
