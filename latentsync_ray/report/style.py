"""Colours and fonts of the page and its charts."""

INK, MUTED, LINES, ACCENT, FAILED = "#1f2933", "#66727f", "#e4e9ee", "#0b7285", "#d6336c"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_AXIS = {"gridcolor": LINES, "linecolor": MUTED, "zeroline": False, "tickformat": ".3~g", "automargin": True}
LAYOUT = {
    "font": {"family": FONT, "size": 13, "color": INK},
    "margin": {"l": 60, "r": 8, "t": 36, "b": 48},
    "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "title_font_size": 13},
    "hoverlabel": {"bgcolor": "#fff", "bordercolor": LINES, "align": "left"},
    "xaxis": {**_AXIS, "showline": True, "title_font_size": 13},
    "yaxis": {**_AXIS, "title_font_size": 13},
}

STYLE = f"""
body {{ background: #f6f8fa; color: {INK}; font: 15px/1.5 {FONT}; margin: 36px auto; width: min(1180px, 94%); }}
h1, h2 {{ font-size: 26px; font-weight: 650; margin: 0; }}
h2 {{ font-size: 17px; }}
p, small, th {{ color: {MUTED}; font-weight: 400; margin: 2px 0 8px; }}
section {{ background: #fff; border: 1px solid {LINES}; border-radius: 10px; padding: 18px 22px; margin-top: 20px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 0 16px; }}
.cards b {{ display: block; color: {INK}; font-size: 27px; font-weight: 650; line-height: 1.25; }}
.table {{ overflow-x: auto; font-size: 14px; font-variant-numeric: tabular-nums; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: right; padding: 6px 10px; border-bottom: 1px solid {LINES}; white-space: nowrap; }}
td:last-child {{ text-align: left; white-space: normal; color: {FAILED}; }}
tr.best td {{ background: #e6f4f6; font-weight: 650; }}
"""
