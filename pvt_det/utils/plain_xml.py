"""Read XML files from users safely: without document types, whose entities can expand to huge values or name files."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pvt_det.errors import PvtDetError

# Attribute of every element with its line number. No file can contain it, because a name cannot begin with "{".
_LINE = "{line}"


def read_plain_xml(path: Path, error: type[PvtDetError]) -> Element:
    """Read an XML file without a document type.

    Args:
        path: An existing file.
        error: Type of the error to raise.

    Returns:
        The root element. `line_of` returns the line of any of its elements.

    Raises:
        PvtDetError: The file cannot be read, is not XML, or has a document type. The error has the given type.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, attributes | {_LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise error(f"{path}: line {parser.CurrentLineNumber}: <!DOCTYPE is refused. Remove it.")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}).") from fault
    except (expat.ExpatError, ValueError, LookupError) as fault:  # the others: an encoding that expat does not support
        raise error(f"{path}: broken or cut short XML ({fault}). Write or copy it again.") from fault
    return builder.close()


def line_of(element: Element) -> int:
    """Return the line of an element's start tag, from 1.

    Args:
        element: An element of `read_plain_xml`.
    """
    return int(element.attrib[_LINE])
