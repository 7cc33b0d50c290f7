"""XML files: whatever bytes they hold, an annotation or one line; and what was written is what is read."""

from __future__ import annotations

import time
from encodings.aliases import aliases
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest
from dior_folders import annotation_xml
from hypothesis import given
from hypothesis import strategies as st
from profiles import fuzz
from voc_target import ANNOTATIONS, IMAGE_ID, check_annotation, make_dataset, one_line

from surgerylib.datasets import read_annotation
from surgerylib.errors import DatasetError
from surgerylib.words import DIOR_CLASSES

# Python's codec for `unicode_escape` warns of what it cannot read
pytestmark = pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")
CORPUS = sorted((Path(__file__).parent / "corpus").rglob("*.xml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_the_fuzzer_found(root, path):
    check_annotation(path.read_bytes(), root)


# ------------------------------------------------------------------------------------------------------ any bytes


@fuzz(40)
@given(data=st.binary(max_size=80))
def test_any_bytes(root, data):
    check_annotation(data, root)


TAGS = st.sampled_from(
    ["annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width", "height", "part",
     "v:object", "é"]
)  # fmt: skip
NUMBERS = [
    "nan", "inf", "-inf", "1e308", "-1e308", "1e309", "1e-400", "1" * 400, "0x10", "1_0", "-0", "+3", " 3\n", "٣",
    "3,5", "0.1.2", "", "1e", "infinity", "NaN", "½", "१", "1e400", "5.", ".5",
]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([*DIOR_CLASSES, "golf course", "shipp yard", *NUMBERS]),
    st.integers(-5, 100).map(str),
    st.floats(-10, 100).map(str),
    st.text(max_size=6).map(escape),
)
ODDITIES = st.sampled_from(
    ["<!-- 3 -->", "<?pi 3?>", "<![CDATA[3]]>", "<![CDATA[", "&#51;", "&#10;", "&#x2028;", "&amp;", "&nothing;",
     "&#0;", "&#xd800;", "]]>", "<", "&", "\x00", "\x1b", "<b/>"]
)  # fmt: skip


def element(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    attributes = st.sampled_from(["", "", "", ' a="1"', ' a="1" a="2"', ' xmlns="x"', ' xmlns:v="&#10;"', " a"])
    inside = st.lists(children, max_size=5).map("".join)
    return st.builds("<{0}{1}>{2}</{0}>".format, TAGS, attributes, inside)


TREES = st.recursive(st.one_of(TEXTS, ODDITIES), element, max_leaves=20)


@fuzz(60)
@given(inside=st.lists(TREES, max_size=4).map("".join))
def test_any_tree(root, inside):
    check_annotation(f"<annotation>{inside}</annotation>".encode("utf-8", "replace"), root)


@fuzz(60)
@given(
    st.sampled_from(["xmin", "ymin", "xmax", "ymax", "width", "height", "name"]),
    st.one_of(st.sampled_from(NUMBERS), st.text(max_size=8).map(escape), TREES),
)
def test_any_text_for_one_value(root, tag, text):
    values = {"xmin": 1, "ymin": 1, "xmax": 5, "ymax": 5, "width": 8, "height": 8, "name": "ship", tag: text}
    box = [(values["name"], *(values[corner] for corner in ("xmin", "ymin", "xmax", "ymax")))]
    xml = annotation_xml("x", box, (values["width"], values["height"]))
    check_annotation(xml.encode("utf-8", "replace"), root)


@fuzz(40)
@given(st.sampled_from(CORPUS).map(Path.read_bytes), st.data())
def test_a_file_with_a_piece_changed(root, content, data):
    at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 20))
    check_annotation(content[:at] + data.draw(st.binary(max_size=8)) + content[at + length :], root)


# ----------------------------------------------------------------------------------- what was written is read

SPELLINGS = st.sampled_from(
    [(name, name) for name in DIOR_CLASSES] + [("Golf Course", "golffield"), ("plane", "airplane")]
)
NUMBER_TEXTS = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda n: (float(n), str(n))),
    st.floats(-1e9, 1e9).map(lambda x: (x, repr(x))),
    st.floats(-1e3, 1e3).map(lambda x: (float(f"{x:.3e}"), f" {x:.3e}\n")),
)


@st.composite
def files(draw) -> tuple[tuple, str]:
    """What an annotation says, and a file that says it, with whatever XML allows around it."""
    part = "<part><name>dam</name><bndbox/></part>"
    between = st.sampled_from(["", "\n", "\t<!-- <xmin>3</xmin> -->", "<?pi?>", part, "text"])
    start = st.sampled_from(["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="{0}"?>', "<!-- first -->"])
    labels, found, objects = [], [], []
    for (written, label), corners in draw(st.lists(st.tuples(SPELLINGS, st.tuples(*[NUMBER_TEXTS] * 4)), max_size=4)):
        (x1, y1, x2, y2) = corners
        (x1, x2), (y1, y2) = sorted([x1, x2]), sorted([y1, y2])
        corner_tags = draw(st.permutations([("xmin", x1), ("ymin", y1), ("xmax", x2), ("ymax", y2)]))
        box = draw(between).join(f"<{tag}>{text}</{tag}>" for tag, (_, text) in corner_tags)
        name = draw(st.sampled_from([f"<name>{written}</name>", f"<name> <![CDATA[{written}]]>\n</name>"]))
        attribute = draw(st.sampled_from(["", f" id={quoteattr(written + '<&>')}"]))
        objects.append(draw(between).join([f"<object{attribute}>", name, f"<bndbox>{box}</bndbox>", "</object>"]))
        labels.append(label)
        found.append((x1[0], y1[0], x2[0], y2[0]))
    size_wh = draw(st.one_of(st.none(), st.tuples(st.integers(1, 10**5), st.integers(1, 10**5))))
    size = "" if size_wh is None else f"<size><height>{size_wh[1]}</height><width>{size_wh[0]}.0</width></size>"
    parts = draw(st.permutations([*objects, size])) if len(set(objects)) < 2 else [size, *objects]
    text = draw(start) + f"<annotation>{draw(between).join(['', *parts, ''])}</annotation>"
    return (size_wh, labels, found), text


@fuzz(60)
@given(file=files(), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "us-ascii", "cp1252"]))
def test_what_was_written_is_read_back(root, file, encoding):
    expected, text = file
    if "{0}" not in text:
        encoding = "utf-8"
    annotation = check_annotation(text.replace("{0}", encoding.removesuffix("-sig")).encode(encoding), root)
    assert annotation is not None
    assert tuple(annotation) == expected


# ------------------------------------------------------------------------------------ what XML can do to a reader


def refused(root: Path, content: bytes) -> str:
    started = time.process_time()
    assert check_annotation(content, root) is None
    with pytest.raises(DatasetError) as error:
        read_annotation(root / ANNOTATIONS / f"{IMAGE_ID}.xml")
    assert time.process_time() - started < 10
    return one_line(error.value)


SHIP = "<annotation><object><name>{}</name><bndbox/></object></annotation>"
LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
DECLARATIONS = {
    "bomb": '<!DOCTYPE a [<!ENTITY l0 "lol">' + LAUGHS + "]>" + SHIP.format("&l9;"),
    "blow_up": f'<!DOCTYPE a [<!ENTITY l "{"x" * 10**5}">]>' + SHIP.format("&l;" * 10**4),
    "in_an_attribute": '<!DOCTYPE a [<!ENTITY l "lol">]><annotation a="&l;"/>',
    "file": '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>' + SHIP.format("&f;"),
    "address": '<!DOCTYPE a [<!ENTITY f SYSTEM "http://127.0.0.1:9/x">]>' + SHIP.format("&f;"),
    "public": '<!DOCTYPE a [<!ENTITY f PUBLIC "x" "http://127.0.0.1:9/x">]>' + SHIP.format("&f;"),
    "parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd">%p;]><annotation/>',
    "unparsed": '<!DOCTYPE a [<!NOTATION n SYSTEM "x"><!ENTITY f SYSTEM "x.jpg" NDATA n>]><annotation/>',
    "not_used": '<!DOCTYPE a [<!ENTITY unused "x">]><annotation/>',
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_entities_are_refused(root, name):
    for encoding in ("utf-8", "utf-16"):
        message = refused(root, DECLARATIONS[name].encode(encoding))
        assert "declares XML entities" in message
        assert "remove the DOCTYPE" in message


def test_a_document_type_elsewhere_is_not_fetched(root, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a connection was made"))
    for doctype in ('SYSTEM "http://127.0.0.1:9/x.dtd"', 'PUBLIC "x" "file:///etc/passwd"', ""):
        assert check_annotation(f"<!DOCTYPE a {doctype}><annotation/>".encode(), root) == (None, [], [])


def test_deep_and_wide_trees_are_read_in_bounded_time(root):
    for inside in ("<part>" * 100_000 + "</part>" * 100_000, "<part/>" * 100_000):
        started = time.process_time()
        assert check_annotation(f"<annotation>{inside}</annotation>".encode(), root) == (None, [], [])
        assert time.process_time() - started < 10


def test_a_hostile_text_leaves_the_message_one_short_line(root):
    for content, message in (
        (b"<annotation><object><name>" + b"x" * 10**6 + b"</name></object></annotation>", "unknown class 'xxx"),
        (b"<" + b"x" * 10**6 + b"/>", "starts with <xxx"),
        (b'<a xmlns="one&#10;two&#27;[2J"/>', "not well-formed"),  # a control character cannot be written at all
        (b'<a xmlns="one&#10;two&#x9b;2J"/>', "one two\\x9b2J"),
        (b"<a xmlns='&#x2028;&#x202e;'/>", "\\u202e"),
        (b'<?xml version="1.0" encoding="' + b"x" * 5000 + b'"?><annotation/>', "not well-formed"),
    ):
        assert message in refused(root, content)


def test_comments_and_instructions_inside_a_number_are_not_part_of_it(root):
    box = "<xmin>1<!-- 9 -->2</xmin><ymin>3<?pi 9?></ymin><xmax><![CDATA[4]]>0</xmax><ymax>&#53;&#48;</ymax>"
    annotation = check_annotation(SHIP.format("ship").replace("<bndbox/>", f"<bndbox>{box}</bndbox>").encode(), root)
    assert annotation.boxes_xyxy == [(12, 3, 40, 50)]


@pytest.mark.parametrize("encoding", sorted(set(aliases.values()) | {"idna", "unicode_escape", "undefined"}))
def test_no_encoding_hides_a_declaration(root, encoding):
    for head in ("", f'<?xml version="1.0" encoding="{encoding}"?>'):
        try:
            body = DECLARATIONS["file"].encode(encoding, "replace")
            contents = [head.encode() + body, head.encode(encoding, "replace") + body]
        except (LookupError, ValueError):  # no encoding of text
            continue
        for content in contents:
            assert check_annotation(content, root) is None
