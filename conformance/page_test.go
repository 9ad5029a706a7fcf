package conformance

import (
	"bytes"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-dev/assay/verify/attest"
)

// needed says that a test cannot run without a tool: a skip here, a failure in
// CI, where the tools are installed by name.
func needed(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func soak() bool { return os.Getenv("ASSAY_SOAK") != "" }

// browser opens a page in headless Chromium.
func browser(t *testing.T, args ...string) []byte {
	t.Helper()
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		needed(t, "chromium is not installed: run 'make deps'")
	}
	cmd := exec.Command(chromium, append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
		"--user-data-dir=" + t.TempDir(), "--host-resolver-rules=MAP * ~NOTFOUND"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	return out.Bytes()
}

// What a reader would measure with a ruler, the page measures of itself. The
// page has no script; this is added to a copy.
const ruler = `<script>document.body.setAttribute("data-wide",document.documentElement.scrollWidth>document.documentElement.clientWidth);` +
	`document.body.setAttribute("data-bars",[...document.querySelectorAll("rect.bar")].filter(b=>b.getBoundingClientRect().height>0).length);` +
	`document.body.setAttribute("data-cut",[...document.querySelectorAll(".wide,figure")].some(b=>b.scrollWidth>b.clientWidth));` +
	`document.body.setAttribute("data-clipped",[...document.querySelectorAll("svg text")].filter(t=>{const b=t.getBoundingClientRect(),s=t.ownerSVGElement.getBoundingClientRect();` +
	`return b.left<s.left||b.right>s.right+1||b.top<s.top||b.bottom>s.bottom+1}).map(t=>t.textContent));` +
	`document.body.setAttribute("data-claim",document.querySelector(".claim").getBoundingClientRect().bottom<300);</script>`

// The page holds the claim first and everything else after it, needs nothing
// from elsewhere, and fits the width of a window and of a sheet of paper.
func TestPageInABrowser(t *testing.T) {
	b := second(newBench(t, shifted(0.3)), close...)
	r := judged(t, b.replay())
	r.EnvironmentName = `prod-<script>document.title="run"</script>`
	raw, err := reportHTML(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, elsewhere := range []string{"http://", "https://", "url(", "@import", "src="} {
		if bytes.Contains(raw, []byte(elsewhere)) {
			t.Errorf("the page has %s in it", elsewhere)
		}
	}
	dir := t.TempDir()
	if keep := os.Getenv("ASSAY_TEST_PAGE"); keep != "" {
		dir = keep // to look at it
	}
	file := filepath.Join(dir, "report.html")
	for name, page := range map[string][]byte{file: raw, filepath.Join(dir, "ruler.html"): append(bytes.Clone(raw), ruler...)} {
		if err := os.WriteFile(name, page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dom := string(browser(t, "--window-size=1200,900", "--dump-dom", "file://"+filepath.Join(dir, "ruler.html")))
	for _, want := range []string{"REJECTED", "not equivalent to the reference", "could have gone unseen", "noise floor of the reference", `class="flip"`, "By slice", "segment=young",
		"retried", "or fair", `data-cut="false"`, `data-clipped=""`, `data-wide="false"`, `data-claim="true"`, "&lt;script&gt;", "assay judge"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the browser shows no %s", want)
		}
	}
	if strings.Contains(dom, `data-bars="0"`) || !strings.Contains(dom, `data-bars="`) {
		t.Error("the plots have no bars")
	}
	narrow := string(browser(t, "--window-size=500,900", "--dump-dom", "file://"+filepath.Join(dir, "ruler.html")))
	if !strings.Contains(narrow, `data-wide="false"`) {
		t.Error("in a narrow window the page is wider than the window")
	}
	pdf := filepath.Join(dir, "report.pdf")
	browser(t, "--print-to-pdf="+pdf, "--no-pdf-header-footer", "file://"+file)
	if raw, err := os.ReadFile(pdf); err != nil || !bytes.HasPrefix(raw, []byte("%PDF-")) {
		t.Errorf("on paper: %v, %d bytes", err, len(raw))
	}
	if os.Getenv("ASSAY_TEST_PAGE") != "" {
		browser(t, "--window-size=1200,3400", "--screenshot="+filepath.Join(dir, "report.png"), "file://"+file)
	}
}

// So it is whatever the verdict is and whatever was compared: nothing is cut off
// in a wide window, and nothing but wide tables has to be scrolled in a narrow one.
func TestPagesOfEveryKind(t *testing.T) {
	dead := second(newBench(t, scorer), close...)
	dead.server.Close()
	logprobs := attest.Limit{Measure: attest.MeasureLogprob, Margin: 0.5}
	texts := newTextBench(t, textCandidates(withLogprobs), textCriteria(attest.TextCriteria{Decision: attest.DecideText}, logprobs))
	drawn := newDrawnBench(t, "", drawnCriteria(func(s *attest.SampledCriteria) { s.Prefix = 20 }), "hot", "cold")
	clusters := newPairedBench(t, withLabels(inClusters(candidates(300), 4)), flipsAllowed(59, 0)).change(7, 2)
	for name, r := range map[string]attest.Report{
		"sampled texts":         judged(t, drawn.replay(always("silent-canary"))),
		"labels and clusters":   judged(t, clusters.replay()),
		"tensors, inconclusive": judged(t, dead.replay()),
		"texts, certified":      judged(t, texts.replay(nil)),
		"texts, rejected":       judged(t, texts.replay(texts.after("silent-canary", every))),
	} {
		raw, err := reportHTML(r)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "ruler.html")
		if err := os.WriteFile(file, append(raw, ruler...), 0o644); err != nil {
			t.Fatal(err)
		}
		for size, wants := range map[string][]string{
			"1200,900": {`data-cut="false"`, `data-clipped=""`, `data-wide="false"`, `data-claim="`, string(r.Verdict)},
			"500,900":  {`data-clipped=""`, `data-wide="false"`},
		} {
			dom := string(browser(t, "--window-size="+size, "--dump-dom", "file://"+file))
			for _, want := range wants {
				if !strings.Contains(dom, want) {
					t.Errorf("%s, in a window of %s: no %s", name, size, want)
				}
			}
		}
	}
}

func TestForms(t *testing.T) {
	for model, verdict := range map[string]attest.Verdict{"same": attest.Certified, "shifted": attest.Rejected, "dead": attest.Inconclusive} {
		b := second(newBench(t, scorer), close...)
		switch model {
		case "shifted":
			b.server.SetModel(shifted(1))
		case "dead":
			b.server.Close()
		}
		r := judged(t, b.replay())
		for _, form := range Forms {
			var out bytes.Buffer
			if err := WriteForm(&out, form, r); err != nil || !strings.Contains(out.String(), string(verdict)) {
				t.Errorf("%s as %s: %v", model, form, err)
			}
			if form != "xml" {
				continue
			}
			var s struct {
				Tests    int `xml:"tests,attr"`
				Failures int `xml:"failures,attr"`
				Errors   int `xml:"errors,attr"`
				Case     []struct {
					Failure *struct{} `xml:"failure"`
					Error   *struct{} `xml:"error"`
					Skipped *struct{} `xml:"skipped"`
				} `xml:"testcase"`
			}
			if err := xml.Unmarshal(out.Bytes(), &s); err != nil || s.Tests != len(s.Case) || (s.Failures+s.Errors == 0) != (verdict == attest.Certified) {
				t.Errorf("%s: %v, %+v", model, err, s)
			}
			for _, c := range s.Case {
				if c.Skipped != nil {
					t.Error("a test is skipped, which pipelines take for a pass")
				}
			}
		}
	}
	if err := WriteForm(&bytes.Buffer{}, "docx", attest.Report{}); err == nil {
		t.Error("a report was written in a form that nobody knows")
	}
}
