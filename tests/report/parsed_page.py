"""A page of the report as tests look at it."""

import html.parser


class Parsed(html.parser.HTMLParser):
    """Tags with attributes, the text, the cells of labelled tables; tags must be closed in order.

    Attributes:
      tags: (name, attributes).
      text: of the page.
      tables: label of a region -> the texts of its cells, one list per row, without the head.
    """

    VOID = frozenset(("meta", "link", "img", "input", "br"))

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.tables, self._open = [], "", {}, []
        self._rows, self._depth = None, 0
        self.feed(path.read_text("utf-8"))
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if attrs.get("role") == "region":
            self._rows = self.tables[attrs["aria-label"]] = []
            self._depth = len(self._open)
        if self._in_body() and tag == "tr":
            self._rows.append([])
        if self._in_body() and tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if len(self._open) == self._depth:
            self._rows = None

    def handle_data(self, data):
        self.text += data
        if self._in_body() and {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def _in_body(self) -> bool:
        return self._rows is not None and "tbody" in self._open
