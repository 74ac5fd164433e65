"""Check the links of all Markdown pages: files and anchors, without network.

python tools/check_links.py [ROOT]
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
SKIPPED = {".git", ".venv", "site", "demo", "runs", "node_modules", ".pytest_cache"}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    names = set()
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        names.add(re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-"))
    return names


def dead_links(root: Path) -> list[str]:
    """Return a line for each link whose file or anchor does not exist."""
    dead = []
    pages = [page for page in root.rglob("*.md") if not SKIPPED & set(page.relative_to(root).parts)]
    for page in sorted(pages):
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                dead.append(f"{page.relative_to(root)}: {link}: there is no such file")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                dead.append(f"{page.relative_to(root)}: {link}: there is no such heading")
    return dead


def main() -> int:
    """Print the dead links; return 1 if there are any, else 0."""
    dead = dead_links(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    print("\n".join(dead) or "no dead links")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
