"""The style sheet of the HTML report: light and dark, wide and narrow, no fonts or images from outside."""

STYLE = """
:root{--ink:#1c2430;--soft:#5d6877;--line:#dfe4ea;--page:#f6f7f9;--card:#fff;--blue:#2b62d9;--good:#13794a;--bad:#c0392b;
--mark:#ffd9d3;--markink:#8f1d12;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebf0;--soft:#9aa6b5;--line:#313a46;--page:#12161c;--card:#1a2029;
--blue:#7ea6ff;--good:#55c893;--bad:#ff8a7a;--mark:#5b221b;--markink:#ffc9c1}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 20px 64px}
header p{max-width:76ch;color:var(--soft)}
h1{margin:8px 0 4px;font-size:34px;letter-spacing:-.02em;line-height:1.15}
h2{margin:44px 0 8px;font-size:20px}
.tag{display:inline-block;margin:0;padding:3px 12px;border-radius:99px;background:var(--blue);color:#fff;font-size:13px;
font-weight:600}
@media(prefers-color-scheme:dark){.tag{color:#0d1420}}
header p.tag{color:#fff}
@media(prefers-color-scheme:dark){header p.tag{color:#0d1420}}
.note{color:var(--soft);margin:0 0 12px}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px;margin:12px 0 18px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:9px 14px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
thead th{font-size:13px;color:var(--soft);font-weight:600}
thead th[colspan]{text-align:center}
th:first-child{text-align:left}
tbody tr:last-child>*{border-bottom:0}
td small{display:block;color:var(--soft);font-size:12px}
td.good,td.bad{font-weight:600}td.good small,td.bad small{font-weight:400}
tbody th{position:sticky;left:0;background:var(--card);font-weight:600}
tr.split th{position:static;background:none;color:var(--soft);font-size:13px;padding-bottom:3px;border-bottom:0}
h4{margin:0 0 4px;font-size:13px;color:var(--soft);font-weight:600}
h3{margin:24px 0 8px;font-size:16px}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--soft)}
.charts{display:grid;margin-bottom:16px;grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr));gap:16px}
figure{margin:0;padding:14px 16px;background:var(--card);border:1px solid var(--line);border-radius:12px;max-width:100%;
overflow-x:auto}
figcaption{font-size:14px;font-weight:600;margin-bottom:8px}
svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--ink);font-size:13px}svg text.tick{fill:var(--soft);font-size:11px}
svg .zero{stroke:var(--soft);stroke-width:1}svg .grid{stroke:var(--line)}
svg g line{stroke:currentColor;stroke-width:2.5;stroke-linecap:round}svg g circle{fill:currentColor}
svg text.num{font-variant-numeric:tabular-nums;font-weight:600}
svg text.good{fill:var(--good)}svg text.bad{fill:var(--bad)}svg text.open{fill:var(--soft)}
svg .series0{fill:var(--soft)}svg .series1{fill:var(--blue)}
svg .cell{fill:var(--line);fill-opacity:.55}svg .heat{fill:var(--blue)}
.cards{display:grid;gap:14px;margin-top:14px}
.card{display:flex;gap:20px;padding:16px;background:var(--card);border:1px solid var(--line);border-radius:12px}
.picture{flex:0 0 200px;font-size:13px;color:var(--soft)}.picture p{margin:5px 0 0}
.picture img{width:100%;border-radius:8px;display:block}
.said{flex:1;min-width:0}.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:18px}
.columns p{margin:0 0 6px}.missed{color:var(--soft);font-size:13px}
mark{background:var(--mark);color:var(--markink);padding:1px 4px;border-radius:4px;font-weight:600}
.reply b,.note b{font-weight:inherit;text-decoration:underline;text-decoration-color:var(--good);
text-decoration-thickness:2px;text-underline-offset:3px}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft);font-size:13px;margin-bottom:8px}
.controls{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;margin:12px 0;font-size:14px}
.controls label{cursor:pointer}input,select,button{font:inherit;color:inherit;background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:5px 10px;max-width:100%}input[type=search]{flex:1 1 180px}
input[type=checkbox]{margin:0 6px 0 0}button{cursor:pointer}button:disabled{opacity:.45;cursor:default}
nav{margin-top:14px}.reply{white-space:pre-line;overflow-wrap:anywhere}.ask{margin:0 0 8px;font-weight:600}
.id{overflow-wrap:anywhere}ul.note{padding-left:20px}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;font-size:13px}
code{font-size:12px;overflow-wrap:anywhere}footer{color:var(--soft);font-size:14px}footer h2{color:var(--ink)}
@media(max-width:640px){.card{flex-direction:column}.picture{flex-basis:auto}main{padding:24px 14px}th,td{padding:8px 10px}
h1{font-size:27px}}
"""
