"""Run in the stand-in for AWS's chips: `STANDIN=neuron pytest tests/standins/neuron`."""
