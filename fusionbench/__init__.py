"""fusionbench: what does fusing two modalities cost, on your shapes and your hardware?"""

__version__ = "0.1.0"
