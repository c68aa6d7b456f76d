"""The embedded world: facts of real cities, and a generator of labelled text about them and beside them."""

from saecore.sources.atlas.cities import ATTRIBUTES, AtlasError, City, facts
from saecore.sources.atlas.generator import CONCEPTS, Document, document, documents, token_labels
from saecore.sources.atlas.grammar import Span
from saecore.sources.atlas.wordings import Wording, wordings

__all__ = [
    "ATTRIBUTES",
    "AtlasError",
    "CONCEPTS",
    "City",
    "Document",
    "Span",
    "Wording",
    "document",
    "documents",
    "facts",
    "token_labels",
    "wordings",
]
