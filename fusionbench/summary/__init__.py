"""How a comparison and its judgement are shown: terminal, markdown, JUnit, GitHub annotations, JSON."""
