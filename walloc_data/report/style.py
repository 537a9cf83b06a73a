"""The report's style sheet: system fonts, two colour schemes, one column on a phone."""

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1e24;--muted:#565d6b;--rule:#dfe1e6;--bar:#2b74c9;
--level:#a8500a;--track:#edeff3;--link:#1a5fae}
@media (prefers-color-scheme:dark){:root{--bg:#13151a;--card:#1a1d24;--ink:#e9ebf0;--muted:#a5acb9;--rule:#2d313b;
--bar:#62a8f5;--level:#ffb454;--track:#252933;--link:#8cc0ff}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:76rem;padding:1.25rem 1rem 4rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:2rem 0 .5rem}
p{max-width:46rem;margin:.5rem 0}
a{color:var(--link)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:1rem 0 0;padding:0}
nav a{display:inline-block;padding:.3rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1.25rem 0 0}
.tiles div{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.6rem .8rem}
.tiles dt{color:var(--muted);font-size:.85rem}
.tiles dd{margin:0;font-size:1.15rem;font-weight:600;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;color:var(--muted);padding:.4rem 0}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;vertical-align:top;font-weight:400;overflow-wrap:anywhere}
thead th{color:var(--muted);border-bottom:1px solid var(--rule);overflow-wrap:normal}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding-right:.6rem}
td.num,th.num{text-align:right}
.name{white-space:nowrap}
.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.8rem;
white-space:nowrap}
.facts{max-width:46rem}
.facts th{color:var(--muted);width:9.5rem}
.bars,.narrow{max-width:46rem}
.bars th[scope=row]{width:38%;padding-right:.75rem}
.bars td.num{width:1%}
.track{display:block;height:.7rem;margin-top:.4rem;background:var(--track);border-radius:.2rem;min-width:4rem}
.fill{display:block;height:100%;background:var(--bar);border-radius:.2rem}
.scroll{overflow-x:auto;max-height:32rem;overflow-y:auto;margin-top:.5rem}
.scroll:focus-visible,a:focus-visible,summary:focus-visible{outline:2px solid var(--link);outline-offset:2px}
summary{cursor:pointer;padding:.4rem 0;color:var(--link)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1rem;margin:1rem 0;
max-width:76rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.6rem;margin:1rem 0}
.chart{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.7rem .8rem;
max-width:34rem}
.chart figcaption{font-size:.9rem;font-weight:600;margin-bottom:.3rem}
.panels .chart figcaption{font-size:.85rem;margin:0}
.chart small{display:block;font-size:.75rem;font-weight:400;color:var(--muted)}
.chart svg{display:block;width:100%;height:auto}
svg text{fill:var(--muted);font-size:11px;font-family:inherit}
.panels .chart{padding:.5rem .6rem}
.panels svg text{font-size:12px}
svg .label{font-size:11.5px}
svg .note{fill:var(--level);font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px;
stroke-linejoin:round}
.bar{fill:var(--bar)}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--muted);stroke-width:1}
.level{stroke:var(--level);stroke-width:1.5;stroke-dasharray:4 3}
.strip{display:flex;flex-wrap:wrap;gap:.75rem;margin:.5rem 0 1.25rem}
.strip figure{margin:0;flex:0 1 auto}
@media (max-width:40rem){.strip{display:grid;grid-template-columns:1fr 1fr;align-items:start}.strip img{width:100%}}
.strip figcaption{color:var(--muted);font-size:.85rem}
img{display:block;max-width:100%;height:auto;border-radius:.2rem;background:var(--track)}
.values{image-rendering:pixelated}
.classes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17.5rem),1fr));gap:.9rem 1.5rem}
div.class{min-width:0}
.unlabelled div.class{margin:0}
p.class{margin:0 0 .25rem;font-size:.92rem;overflow-wrap:anywhere}
.thumbs{display:flex;flex-wrap:wrap;gap:.35rem}
.thumbs img{height:5.5rem;width:auto}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media print{details{display:block}}
"""
