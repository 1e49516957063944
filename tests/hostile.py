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

TAGS = ("svg", "img", "video", "audio", "body", "input", "iframe", "object", "embed", "marquee", "details", "x")
EVENTS = (
    "onload",
    "onerror",
    "onfocus autofocus",
    "onmouseover",
    "ontoggle",
    "onanimationstart",
    "onpointerenter",
    "onbeforetoggle",
)
MORE = (
    *(f"<{tag} src=x {events}={SET}>" for tag in TAGS[:6] for events in EVENTS[:6]),
    *(f"</{tag}><script>{SET}</script>" for tag in ("section", "main", "p", "h2", "button", "label", "td", "option", "svg")),
    f"&lt;script&gt;{SET}&lt;/script&gt;",
    f"\\u003cscript\\u003e{SET}\\u003c/script\\u003e",
    f"${{{SET}}}",
    f"{{{{constructor.constructor('{SET}')()}}}}",
    f"{{% raw %}}<script>{SET}</script>{{% endraw %}}",
    f"data:text/html,<script>{SET}</script>",
    f'"}};{SET};//',
    f"'-{SET}-'",
    f"<script src=data:,{SET}></script>",
    "<link rel=stylesheet href='data:text/css,*{x:1}'>",
    f"<form action='javascript:{SET}'><button>go</button></form>",
    f"<button popovertarget=x onclick={SET}>x</button>",
)
ALL = (*PAYLOADS, *MORE)
