"""PDF and Word files made from nothing, whole and broken."""

import io
import zipfile
import zlib
from collections.abc import Sequence

from docx import Document
from pypdf import PdfWriter

__all__ = ["docx", "encrypted_pdf", "pdf", "pdf_of", "zip_bomb"]


def pdf(pages: Sequence[str], *, title: str = "") -> bytes:
    """A PDF with a line of text on each page."""
    return pdf_of([f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in pages], title=title)


def pdf_of(contents: Sequence[bytes], *, title: str = "") -> bytes:
    """A PDF whose pages have these content streams, compressed."""
    font = 3 + 2 * len(contents)
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(contents)))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode()]
    for n, content in enumerate(contents):
        page = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * n} 0 R /Resources << /Font << /F1 {font} 0 R >> >> >>"
        )
        packed = zlib.compress(content, 9)
        stream = b"<< /Filter /FlateDecode /Length %d >>\nstream\n" % len(packed) + packed + b"\nendstream"
        objects += [page.encode(), stream]
    objects += [b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", f"<< /Title ({title}) >>".encode()]
    body, places = io.BytesIO(b"%PDF-1.4\n"), []
    body.seek(0, io.SEEK_END)
    for number, item in enumerate(objects, 1):
        places.append(body.tell())
        body.write(b"%d 0 obj\n" % number + item + b"\nendobj\n")
    start = body.tell()
    body.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(b"%010d 00000 n \n" % place for place in places))
    body.write(b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(objects), start))
    return body.getvalue()


def encrypted_pdf() -> bytes:
    """A PDF that asks for a password."""
    writer = PdfWriter(clone_from=io.BytesIO(pdf(["Nobody may read this."])))
    writer.encrypt("secret", algorithm="RC4-128")
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def docx(heading: str, paragraphs: Sequence[str], table: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word file."""
    document = Document()
    document.add_heading(heading, 0)
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    if table:
        rows = document.add_table(len(table), len(table[0]))
        for row, values in zip(rows.rows, table, strict=True):
            for cell, value in zip(row.cells, values, strict=True):
                cell.text = value
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def zip_bomb(*, lie: bool) -> bytes:
    """A Word file that unpacks to 300 MB, `lie`: and declares a small size."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w", force_zip64=True) as part:
        for _ in range(300):
            part.write(b"\0" * (1 << 20))
    packed = target.getvalue()
    return packed.replace((300 << 20).to_bytes(8, "little"), (1000).to_bytes(8, "little")) if lie else packed
