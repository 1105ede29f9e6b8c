"""Sixty texts that a page must show as what they are. Each would set `window.struck`, ask for /struck, or open a
dialog, if it were taken for markup or a script."""

JS = "window.struck=1;fetch('/struck');alert(1)"
MARKUP = [
    f"<script>{JS}</script>",
    f"<SCRIPT>{JS}</SCRIPT >",
    f"<scr<script>ipt>{JS}</script>",
    f"<script\n>{JS}</script\t>",
    f'<img src=x onerror="{JS}">',
    f"<img/src/onerror={JS}>",
    f"<svg onload={JS}>",
    f"<svg><script>{JS}</script></svg>",
    f"<svg><animate onbegin={JS} attributeName=x dur=1s>",
    f"<body onload={JS}>",
    f"<iframe src='javascript:{JS}'></iframe>",
    f"<iframe srcdoc='<script>parent.{JS}</script>'></iframe>",
    f"<details open ontoggle={JS}>",
    f"<video><source onerror={JS}>",
    f"<input autofocus onfocus={JS}>",
    f"<a href='javascript:{JS}'>a</a>",
    f"<form action='javascript:{JS}'><button>go</button></form>",
    f"<math><mi xlink:href='data:x,<script>{JS}</script>'>",
    f"<object data='data:text/html,<script>{JS}</script>'></object>",
    "<meta http-equiv=refresh content='0;url=/struck'>",
    "<link rel=stylesheet href=/struck>",
    "<base href=//struck.example/>",
    "<style>*{background:url(/struck)}</style>",
    "<p style='background:url(/struck)'>a</p>",
    f"<template><img src=x onerror={JS}></template>",
    f"<noscript><p title='</noscript><img src=x onerror={JS}>'>",
    f"<!--><img src=x onerror={JS}>-->",
    f"<![CDATA[<script>{JS}</script>]]>",
    f"</textarea><script>{JS}</script>",
    f"</title><script>{JS}</script>",
    f"</pre><script>{JS}</script>",
    f"</option></select><script>{JS}</script>",
    f'"><script>{JS}</script>',
    f"'><script>{JS}</script>",
    f"` onerror={JS} `",
    f'" onmouseover="{JS}',
    f"' autofocus onfocus='{JS}",
    f"javascript:{JS}",
    f"data:text/html,<script>{JS}</script>",
    f"${{{JS}}}",
    f"{{{{constructor.constructor('{JS}')()}}}}",
    f"<%= {JS} %>",
    f"\\u003cscript\\u003e{JS}\\u003c/script\\u003e",
    f"&lt;script&gt;{JS}&lt;/script&gt;",
    f"&#60;script&#62;{JS}",
    f"+ADw-script+AD4-{JS}",
]
LETTERS = [
    "\u202egnp.exe\u202c",
    "\u2066\u2067\u2068a\u2069",
    "\u200b\u200d\ufeff\u00ad",
    "a\u0301" + "\u0301" * 300,
    "\x00\x01\x07\x08\x1b[31m\x7f",
    "\u2028\u2029\x85",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ud83d",
    "\udc4d",
    "a\ud800b\udfffc",
    "\ufffe\uffff\ufdd0",
    "__proto__",
    "constructor",
]
LONG = ["x" * 100_000 + f"<script>{JS}</script>"]
HOSTILE = [*MARKUP, *LETTERS, *LONG]


def in_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
