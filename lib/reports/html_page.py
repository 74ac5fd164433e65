"""One HTML page with its pictures inside, without scripts, read from anywhere."""

import base64
from html import escape

_CSS = """
body{font:16px/1.5 Georgia,'Times New Roman',serif;color:#222;max-width:52rem;margin:2.5rem auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.25;margin-bottom:.3rem}h2{font-size:1.15rem;margin-top:2.4rem}
p.by{color:#666;margin-top:0}figure{margin:1.6rem 0}figure img{width:100%;height:auto}
figcaption,caption,small,.notes{font-size:.86rem;color:#333;text-align:left;line-height:1.4}
caption{padding-bottom:.5rem}table{border-collapse:collapse;width:100%;font-size:.82rem;margin:1rem 0}
thead{border-top:1.5px solid #222;border-bottom:.8px solid #222}tbody{border-bottom:1.5px solid #222}
th,td{padding:.16rem .4rem;text-align:right;white-space:nowrap;font-weight:normal}
thead th{font-weight:bold;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
tfoot td{border-bottom:1.5px solid #222}.wide{overflow-x:auto}
@media print{body{margin:0;max-width:none}figure,table{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
    """Return the whole page; `body` is HTML, `title` is not."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def figure(number: int, picture: bytes, caption: str, *, alt: str) -> str:
    """Return a PNG with its caption, which is HTML."""
    data = base64.b64encode(picture).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>Figure {number}.</b> {caption}</figcaption></figure>"
    )
