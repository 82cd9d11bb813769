"""Markdown of the notebooks as HTML: headings with anchors, formulas as MathML (nothing is loaded
to show them), code in colour, links rewritten."""

import html
import re
from functools import partial

import bleach
import mistune
from bleach.css_sanitizer import CSSSanitizer
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

FORMATTER = HtmlFormatter(nowrap=True)
TAGS = "table caption colgroup col thead tbody tfoot tr th td div span p pre code b i em strong"
TAGS = {*TAGS.split(), "small", "sub", "sup", "br", "hr", "ul", "ol", "li", "details", "summary"}
CELLS = ["colspan", "rowspan", "valign", "halign"]
KEPT = {"*": ["class", "style", "title"], "th": CELLS, "td": CELLS}


def harmless(markup):
    """HTML that a cell has made, which may hold names of other people: tables and letters stay,
    scripts, pictures, addresses and whatever acts are shown as text."""
    return bleach.clean(markup, TAGS, KEPT, css_sanitizer=CSSSanitizer())


def colour(code, language="python"):
    """Source code with the classes of `style_sheet`."""
    try:
        return highlight(
            code, get_lexer_by_name(language or "text", stripnl=False), FORMATTER
        ).rstrip("\n")
    except ClassNotFound:
        return html.escape(code)


def style_sheet(name, scope):
    """Colours of code, for the light and the dark page."""
    return HtmlFormatter(style=name).get_style_defs(scope)


def math(tex, display):
    """A formula as MathML, with its source as a title for those who copy it."""
    clean = re.sub(r"(\\[bB]igg?[lr]?\s*)\\[lr]Vert", r"\1\\Vert", tex.strip())
    try:
        made = convert(clean, display="block" if display else "inline")
    except Exception as error:  # it has many, none names the formula
        raise ValueError(
            f"This formula cannot be shown: {tex.strip()} ({type(error).__name__} "
            f"{error}); mend it in its notebook."
        ) from error
    made = re.sub(
        r"<msup><m[io]>(\w)</m[io]><m[io]>(?:&#x0*2032;|′)</m[io]></msup>",
        r"<mrow><mi>\1</mi><mo lspace='0' rspace='0'>′</mo></mrow>",
        made,
    )
    return made.replace("<math ", f'<math title="{html.escape(tex.strip(), quote=True)}" ', 1)


def slug(text):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(
        r"\s",
        "-",
        re.sub(r"[^\w\s-]", "", html.unescape(re.sub(r"<[^>]+>", "", text)).strip().lower()),
    )


def plain(markup):
    """The words of some HTML, for the search index."""
    without = re.sub(r"<(math|style|script)\b.*?</\1>", " ", markup, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", without))).strip()


class Renderer(mistune.HTMLRenderer):
    """One page: `link` turns an address of the repository into one of the site, `names` finds the
    page of a public name."""

    def __init__(self, link, names):
        super().__init__(escape=False)
        self.address, self.names, self.headings, self.used = link, names, [], set()
        self.trusted = True  # written by people of this repository, and not made by a cell

    def heading(self, text, level, **_):
        anchor = base = slug(text) or "section"
        for k in range(1, 1000):
            if anchor not in self.used:
                break
            anchor = f"{base}-{k}"
        self.used.add(anchor)
        self.headings.append((level, anchor, text))
        return (
            f'<h{level} id="{anchor}">{text}<a class="anchor" href="#{anchor}" '
            f'aria-label="link to this heading">#</a></h{level}>\n'
        )

    def link(self, text, url, title=None):
        return super().link(text, self.address(url), title)

    def image(self, text, url, title=None):
        return (
            f'<img src="{html.escape(self.address(url))}" '
            f'alt="{html.escape(plain(text), quote=True)}" loading="lazy">'
        )

    def codespan(self, text):
        code = f"<code>{html.escape(text)}</code>"
        target = self.names(text)
        return f'<a class="name" href="{target}">{code}</a>' if target else code

    def block_code(self, code, info=None):
        return f'<pre class="hl">{colour(code, (info or "text").split()[0])}</pre>\n'

    def block_html(self, markup):
        return self._addresses(markup) if self.trusted else f"<p>{html.escape(markup)}</p>\n"

    def inline_html(self, markup):
        return self._addresses(markup) if self.trusted else html.escape(markup)

    def _addresses(self, markup):
        return re.sub(
            r'\b(src|href)="([^"]+)"',
            lambda m: f'{m[1]}="{html.escape(self.address(m[2]))}"',
            markup,
        )


def _table(render, text):
    return f'<div class="wide"><table>\n{text}</table></div>\n'


class Prose:
    """Turns Markdown cells of one page into HTML and remembers their headings."""

    def __init__(self, link, names):
        self.renderer = Renderer(link, names)
        self.markdown = mistune.create_markdown(
            renderer=self.renderer, plugins=["table", "math", "strikethrough", "url"]
        )
        self.renderer.register("table", _table)
        self.renderer.register("inline_math", partial(self._math, block=False))
        self.renderer.register("block_math", partial(self._math, block=True))

    def __call__(self, text, trusted=True):
        self.renderer.trusted = trusted
        try:
            return self.markdown(text)
        finally:
            self.renderer.trusted = True

    def _math(self, render, text, block):
        try:
            return math(text, block)
        except ValueError:
            if self.renderer.trusted:
                raise
            return html.escape(f"${text}$")

    def inline(self, text):
        """A line without its paragraph."""
        return re.sub(r"^<p>(.*)</p>\s*$", r"\1", self(text).strip(), flags=re.S)
