"""Guided decoding: which tokens keep an output's text within a schema, a regex or a grammar.

``GuideCompiler`` makes a ``CompiledGuide`` of a ``jaxinfer.structured_outputs.Guide``, beside the
step loop; each sample has a ``GuideMatcher`` of its own. The work is llguidance's, which is
imported when the first guide comes.
"""

from jaxinfer.guides.compiler import CompiledGuide, GuideCompiler
from jaxinfer.guides.matcher import GuideMatcher

__all__ = ["CompiledGuide", "GuideCompiler", "GuideMatcher"]
