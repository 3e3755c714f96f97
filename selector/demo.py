"""The demo's network and data under the address people type: `selector.demo:network`."""

from selector.cli.demo import calibration as calibration
from selector.cli.demo import network as network
