"""Text that would run as a script on a careless page. Each sets `window.__hacked` if it does."""

SET = "window.__hacked=1"

PAYLOADS = (
    f"<script>{SET}</script>",
    f"</script><script>{SET}</script>",
    f"</ScRiPt ><ScRiPt>{SET}</sCrIpT>",
    f"<!--<script>{SET}</script>",
    f"--><script>{SET}</script>",
    f"<img src=x onerror={SET}>",
    f'"><img src=x onerror="{SET}">',
    f"'><img src=x onerror='{SET}'>",
    f"<svg onload={SET}>",
    f"<svg><script>{SET}</script></svg>",
    f"<body onload={SET}>",
    f"<iframe srcdoc='<script>parent.{SET}</script>'></iframe>",
    f"<a href='javascript:{SET}'>x</a>",
    f"javascript:{SET}",
    f'" autofocus onfocus="{SET}" x="',
    f"' onmouseover='{SET}' style='position:fixed;inset:0' x='",
    f"</style><script>{SET}</script>",
    f"</title><script>{SET}</script>",
    f"</textarea></pre></details><script>{SET}</script>",
    f"<math><mtext><table><mglyph><style><img src onerror={SET}>",
    f"<details open ontoggle={SET}>",
    f"{{{{ self.__init__.__globals__ }}}}{{% for x in y %}}<script>{SET}</script>",
    f"\u2028</script>\u2029<script>{SET}</script>",
    f"<base href='//x.invalid/'><link rel=stylesheet href=x onerror={SET}>",
)
