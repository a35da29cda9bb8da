"""The page's words and looks."""

HEAD = """
<header>
<b>webui-diffusers</b>
<h1>Draw it again</h1>
<p>Paste the parameters of a picture, or drop the picture itself. It is read as the webui reads it, and drawn here.</p>
</header>
"""

PLACEHOLDER = """a fox in the snow, (soft light:1.2)
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1432216924, Size: 512x512

Paste here, drop a picture (PNG, JPEG, WebP, AVIF), or choose one with the paper clip."""

EXAMPLE = """a panda
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 7"""

FOOT = """<div class="foot">
One picture at a time, in the order of arrival. Downloads are PNGs that carry their text. {}
</div>"""
API_LINK = 'Programs draw here too, through <a href="docs">the API</a>.'

BOX_LABEL = "Parameters, or a picture"

# Gradio shows the label of this component, but gives it to nobody who cannot see.
NAME_BOX = """
() => {
  const name = () => {
    const box = document.querySelector("#box textarea");
    if (box) box.setAttribute("aria-label", "Parameters, or a picture");
    else setTimeout(name, 100);
  };
  name();
}
"""

# On a phone the picture is below the button that draws it.
LOOK_AT_STATUS = """
(...values) => {
  document.getElementById("status").scrollIntoView({behavior: "smooth", block: "nearest"});
  return values;
}
"""

PAGE_STYLE = """
.gradio-container { max-width: 1180px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container main { width: 100% !important; max-width: none !important; }
header b { color: var(--color-accent); font-size: .85rem; letter-spacing: .02em; }
header h1 { font-size: 2rem; font-weight: 700; letter-spacing: -0.02em; margin: 0 0 .2rem; }
header p, .foot { color: var(--body-text-color-subdued); }
.foot { font-size: .85rem; padding: 1rem 0; }
.foot a { text-decoration: underline; }
.gradio-container .html-container { padding: 0 !important; }
#columns { gap: 2rem; align-items: flex-start; }
#box { border: 2px solid var(--border-color-primary) !important; border-radius: .8rem !important; }
#box textarea { border: 0 !important; }
.form:has(> #box) { overflow: visible; background: none; border: 0; }
#box textarea { font-family: var(--font-mono); font-size: .85rem; line-height: 1.45; }
#reading .prompt { font-size: 1rem; line-height: 1.5; overflow-wrap: anywhere; white-space: pre-wrap;
  margin: 0 0 .5rem; max-height: 11rem; overflow-y: auto; }
#reading .negative { color: var(--body-text-color-subdued); font-size: .9rem; }
#reading .negative span { font-weight: 600; margin-right: .35rem; }
#reading code, section code { margin: 0 !important; }
.foot a { padding: 0 !important; }
#reading code, section code { font-family: var(--font-mono); font-size: .85em; padding: .05em .35em;
  border-radius: .3em; background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .35rem; margin: .25rem 0 .75rem; }
.facts div { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: .15rem .7rem;
  font-size: .85rem; }
.facts dt { display: inline; color: var(--body-text-color-subdued); }
.facts dt::after { content: " "; }
.facts dd { display: inline; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
section.missing, section.differs, section.refusal { border-left: 4px solid; border-radius: .4rem; padding: .5rem .8rem;
  margin: .5rem 0; font-size: .9rem; background: var(--background-fill-secondary); }
section h3 { font-size: .9rem; font-weight: 700; margin: 0 0 .2rem; }
section ul { margin: 0; padding-left: 1.1rem; list-style: disc; }
section.missing { border-color: #d97706; }
section.differs { border-color: #64748b; }
section.refusal { border-color: #dc2626; }
.fine { color: #15803d; font-weight: 600; font-size: .9rem; }
.dark .fine { color: #4ade80; }
.hint { color: var(--body-text-color-subdued); }
#status .hint { border: 2px dashed var(--border-color-primary); border-radius: .8rem; padding: 6rem 1rem;
  text-align: center; }
.drawing { text-align: center; padding: 1rem; border: 1px solid var(--border-color-primary); border-radius: .8rem; }
.drawing img { width: min(100%, 384px); margin: 0 auto .75rem; border-radius: .5rem; }
.drawing progress { appearance: none; width: 100%; height: .6rem; border: 0; border-radius: 999px; overflow: hidden;
  background: var(--border-color-primary); }
.drawing progress::-webkit-progress-bar { background: var(--border-color-primary); }
.drawing progress::-webkit-progress-value { background: var(--color-accent); border-radius: 999px;
  transition: width .3s; }
.drawing progress::-moz-progress-bar { background: var(--color-accent); border-radius: 999px; }
#changes { border: 1px solid var(--border-color-primary); border-radius: .8rem; padding: .8rem 1rem; gap: .6rem; }
#changes h2 { font-size: .95rem; font-weight: 700; margin: 0; }
#changes .block { padding: 0; border: 0; box-shadow: none; background: none; }
#changes .form { gap: .6rem; background: none; border: 0; box-shadow: none; }
#text { padding: 0; border: 0; box-shadow: none; }
#text textarea { font-family: var(--font-mono); font-size: .8rem; }
#box:focus-within { outline: 3px solid var(--color-accent); }
#box textarea:focus-visible { outline: none !important; }
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 700px) {
  header h1 { font-size: 1.6rem; }
  #status .hint { padding: 2rem 1rem; }
}
"""
