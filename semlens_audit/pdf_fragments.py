"""What a page break cut: which elements of a laid out page began on the page before."""

from __future__ import annotations

from typing import Any

__all__ = ["Fragments"]


class Fragments:
    """The elements of a laid out document, page by page.

    Parameters
    ----------
    document
        WeasyPrint's document; its pages hold trees of boxes, and a box knows its element.
    """

    def __init__(self, document: Any) -> None:
        from weasyprint.formatting_structure import boxes

        self._boxes = boxes
        self._roots = [self._root(page._page_box) for page in document.pages]
        self._held = [self._elements(root) for root in self._roots]

    def _root(self, page_box: Any) -> Any:
        return next(child for child in page_box.children if not isinstance(child, self._boxes.MarginBox))

    def _elements(self, root: Any) -> set[int]:
        return {id(box.element) for box in root.descendants() if box.element is not None}

    def chain(self, page: int) -> list[str]:
        """Elements that go on at the top of a page, from the outermost inward.

        Parameters
        ----------
        page
            From 0.

        Returns
        -------
        list of str
            A name for each level of the tag tree; ``"THead"`` for a header row group that is repeated, which its table's rows
            follow. Empty where the page begins with something new.
        """
        if page == 0:
            return []
        before, out = self._held[page - 1], []
        box, previous = self._first(self._first(self._roots[page])), None
        while box is not None and id(box.element) in before:
            tag = str(box.element_tag)
            inner_table = isinstance(box, self._boxes.TableBox) and previous is not None and previous.is_table_wrapper
            if not inner_table:
                out.append(tag)
                if self._wrapped(box, previous):
                    out.append(tag)
            group = getattr(box, "children", [None])[0] if isinstance(box, self._boxes.TableBox) else None
            if group is not None and getattr(group, "is_header", False) and id(group.element) in before:
                out.append("THead")
                previous, box = box, (box.children[1] if len(box.children) > 1 else None)
            else:
                previous, box = box, self._first(box)
        return out

    def _wrapped(self, box: Any, previous: Any) -> bool:
        """Whether WeasyPrint writes two elements, an item and its body, for a box."""
        if previous is not None and previous.element is box.element:
            return False
        bare = "list-item" not in box.style["display"] or box.style["list_style_type"] == "none"
        return box.element_tag in {"dt", "dd"} or (box.element_tag == "li" and bare)

    def _first(self, box: Any) -> Any:
        """First block within a box; none where text or a picture begins."""
        children = getattr(box, "children", ())
        first = children[0] if children else None
        return None if first is None or isinstance(first, (self._boxes.LineBox, self._boxes.TextBox)) else first
