package conformance

import (
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/assay-dev/assay/verify/attest"
)

// WriteReport renders a report for people.
func WriteReport(w io.Writer, r attest.Report) {
	fmt.Fprintf(w, "%s  %s\n", r.Verdict, r.EnvironmentName)
	fmt.Fprintf(w, "  %s\n", r.Claim)
	fmt.Fprintf(w, "  difference: %s\n", r.Difference)
	for _, x := range r.Reasons {
		fmt.Fprintf(w, "  because %s\n", x)
	}
	fmt.Fprintf(w, "  cases: %d claim and %d border, %d compared, %d without an answer, %d wrong, %d retried; %d numbers\n",
		r.Cases.Claim, r.Cases.Border, r.Cases.Compared, r.Cases.Missing+r.Cases.Failed, r.Cases.Wrong, r.Cases.Retried, r.Cases.Elements)
	switch {
	case r.Sampled != nil:
		fmt.Fprintf(w, "  could have gone unseen: a distance below %s (found with probability %s or more above it), and any in fewer than %s of all prompts\n", r.Power.DetectableRate, complement(r.Power.Beta), share(r.Sampled.Unmet))
	case r.Clusters != nil:
		fmt.Fprintf(w, "  could have gone unseen: flips in fewer than %s of clusters (found with probability %s or more above it)\n", share(r.Power.DetectableRate), complement(r.Power.Beta))
	default:
		fmt.Fprintf(w, "  could have gone unseen: a flip rate below %s (found with probability %s or more above it)\n", r.Power.DetectableRate, complement(r.Power.Beta))
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range r.Metrics {
		mark := "ok"
		if !m.Passed {
			mark = "NOT OK"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s %s\tn = %d\t%s\n", m.Name, m.Value, m.Comparator, m.Threshold, m.SampleSize, mark)
	}
	tw.Flush()
	for _, e := range r.Embeddings {
		fmt.Fprintf(w, "  embeddings: %d of %s compared, of %d dimensions, %d the same to the bit; the cosine distance is at most %s (tolerance %s, noise floors %s and %s), norms are from %s to %s of the reference's\n",
			e.Vectors, e.Output, e.Dimension, e.Same, e.MaxDistance, e.Tolerance, e.Noise, e.CandidateNoise, e.MinNorm, e.MaxNorm)
		fmt.Fprintf(w, "  embeddings: of the reference's ten nearest among %d golden vectors, %s are among the environment's\n", e.Index, share(e.Overlap))
	}
	if t := r.Texts; t != nil {
		fmt.Fprintf(w, "  texts: %d compared by %s, %d the same to the byte, %d after normalization; %d diverge%s, %d of them in their first half; the largest edit distance is %s of a text\n",
			t.Choices, t.Decision, t.Same, t.Normalized, t.Diverging, earliest(t.Earliest), t.Halfway, t.MaxEdit)
		fmt.Fprintf(w, "  texts: %d end for another reason, %d have other tool calls, %d have no answer, %d answers count other tokens, %d decisions change when asked again\n", t.Finish, t.ToolCalls, t.NoAnswer, t.Completion, t.Unstable)
		if t.Tokens > 0 {
			fmt.Fprintf(w, "  texts: log probabilities of %d tokens differ by at most %s; %d of the reference's most likely tokens are not listed\n", t.Tokens, t.MaxLogprob, t.TopMissing)
		}
	}
	if t := r.Texts; t != nil && t.BothWays != nil {
		b := t.BothWays
		fmt.Fprintf(w, "  texts: %d of %d cases compared streamed and whole, %d the same%s\n", b.Compared, b.Planned, b.Same, inBrackets(classes(b.Differ)))
	}
	if s := r.Sampled; s != nil {
		writeSampled(w, *s, r.Power.Alpha)
	}
	if a := r.Accuracy; a != nil {
		for _, line := range accuracyWords(*a, r.Power.Alpha, r.Power.Beta) {
			fmt.Fprintf(w, "  accuracy: %s\n", line)
		}
	}
	if c := r.Clusters; c != nil {
		fmt.Fprintf(w, "  clusters: %s\n", clusterWords(*c, r.Power.Alpha))
	}
	if r.Probes != nil {
		fmt.Fprintf(w, "  asked again in benign ways: %d times, %d without a comparable answer\n", r.Probes.Planned, r.Probes.Failed)
		fmt.Fprintf(w, "  threads: %s\n", threadWords(*r.Probes))
	}
	if t := r.Traffic; t != nil {
		fmt.Fprintf(w, "  asked: %d requests%s, %d of them further attempts; %d were rate-limited (429 or 503), %d held back, at most for %s\n",
			t.Requests, budgets(*t), t.Again, t.RateLimited, t.HeldBack, time.Duration(t.MaxWait)*time.Millisecond)
	}
	if l := r.Latency; l != nil {
		fmt.Fprintf(w, "  latency, from when a question was %s: p50 %s, p90 %s, p99 %s, at most %s\n", due(l.Schedule), micros(l.P50), micros(l.P90), micros(l.P99), micros(l.Max))
	}
	if l := r.Latency; l != nil {
		for _, part := range []struct {
			what string
			d    *attest.Delays
		}{{"to the first token", l.FirstToken}, {"from one token to the next", l.PerToken}} {
			if d := part.d; d != nil {
				fmt.Fprintf(w, "  latency, %s: p50 %s, p90 %s, p99 %s, at most %s, of %d answers\n", part.what, micros(d.P50), micros(d.P90), micros(d.P99), micros(d.Max), d.Answers)
			}
		}
	}
	for _, g := range r.Gates {
		for _, h := range g.Hypotheses {
			if h.Unseen != "0" {
				fmt.Fprintf(w, "  %s: %s is %s, below %s with %s confidence (n = %d); an effect below %s could have gone unseen\n",
					g.Name, h.Name, h.Value, h.Bound, complement(r.Power.Alpha), h.N, h.Unseen)
			}
		}
	}
	for _, e := range r.Examples {
		fmt.Fprintf(w, "  %s: %s: %s\n", e.Case, e.What, e.Detail)
	}
}

// writeSampled says what was seen of texts that were drawn at random.
func writeSampled(w io.Writer, s attest.SampledSummary, alpha string) {
	for _, r := range s.References {
		fmt.Fprintf(w, "  sampled texts: %s, from %s to %s with %s confidence each; p of both being the same is %s, of having no more in common than two draws %s\n",
			fmt.Sprintf("the distance from %s is %s", referenceName(r.Name), r.Distance), r.Lower, r.Upper, complement(alpha), r.SameP, r.AlikeP)
	}
	fmt.Fprintf(w, "  sampled texts: %d prompts with %d samples each, compared by %s%s; %s long on average (the reference's %s); between its earlier and later half the distance is %s\n",
		s.Prompts, s.Samples, s.Unit, beyond(s), s.Length, s.References[0].Length, s.Drift)
	for _, f := range s.Finish {
		fmt.Fprintf(w, "  sampled texts: %d end for %q (of the reference's %d)\n", f.Environment, f.Reason, f.Reference)
	}
}

func referenceName(name string) string {
	if name == attest.ReferenceName {
		return "the reference"
	}
	return "the accepted reference " + name
}

// beyond says what of the texts was not compared.
func beyond(s attest.SampledSummary) string {
	if s.Prefix == 0 {
		return ""
	}
	return fmt.Sprintf(" up to the first %d, %d behind them were not compared", s.Prefix, s.Beyond)
}

// accuracyWords say what became of accuracy.
func accuracyWords(a attest.AccuracySummary, alpha, beta string) []string {
	of := "cases"
	if a.Clusters != a.Cases {
		of = fmt.Sprintf("cases in %d clusters", a.Clusters)
	}
	list := []string{fmt.Sprintf("of %d %s with a label the reference is right in %d and this environment in %d: %d got worse, %d got better, %d have no answer",
		a.Cases, of, a.Reference, a.Environment, a.Worse, a.Better, a.Unanswered)}
	if a.Upper != "" {
		list = append(list, fmt.Sprintf("it falls by %s of the cases, at least by %s and at most by %s (%s confidence each, by a bootstrap of %s)", a.Loss, a.Lower, a.Upper, complement(alpha), drawnBy(a.Clusters != a.Cases)))
	}
	return append(list, fmt.Sprintf("p of getting worse as often as better is %s (McNemar, exact; mid-p %s); a net change below %s of all could have gone unseen (beta %s). A large p shows nothing", a.P, a.MidP, share(a.Unseen), beta))
}

func drawnBy(clusters bool) string {
	if clusters {
		return "clusters"
	}
	return "cases"
}

// clusterWords say what it makes that cases come in clusters.
func clusterWords(c attest.ClusterSummary, alpha string) string {
	return fmt.Sprintf("%d claim cases in %d clusters, of at most %d cases; decisions flip in %d clusters, which is what the plan counts; of cases a share of %s flips, from %s to %s (%s confidence each, by a bootstrap of clusters)",
		c.Cases, c.Clusters, c.Largest, c.Flipping, c.FlipRate, c.Lower, c.Upper, complement(alpha))
}

// share renders a share that is decimal text, for people.
func share(text string) string {
	x, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return text
	}
	return percent(x)
}

// budgets says what of its budget a replay used.
func budgets(t attest.Traffic) string {
	var parts []string
	if t.MaxRequests > 0 {
		parts = append(parts, fmt.Sprintf("of %d allowed", t.MaxRequests))
	}
	if t.MaxTokens > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d tokens", t.Tokens, t.MaxTokens))
	}
	if t.Budgets > 1 {
		parts = append(parts, fmt.Sprintf("under %d budgets, one after another", t.Budgets))
	}
	return inBrackets(strings.Join(parts, ", "))
}

func earliest(at int) string {
	if at < 0 {
		return ""
	}
	return fmt.Sprintf(" (the first from character %d on)", at)
}

func due(schedule bool) string {
	if schedule {
		return "due"
	}
	return "sent"
}

func micros(n int64) string { return (time.Duration(n) * time.Microsecond).String() }

// complement renders 1 - beta without arithmetic on text that is for people.
func complement(beta string) string {
	var x float64
	if _, err := fmt.Sscan(beta, &x); err != nil {
		return "?"
	}
	return percent(1 - x)
}

// Forms in which a report can be written, by the ending of a file's name.
var Forms = []string{"html", "json", "txt", "xml"}

// WriteForm writes a report as one page ("html"), as it is stored ("json"), for
// people ("txt") or as JUnit ("xml").
func WriteForm(w io.Writer, form string, r attest.Report) error {
	var raw []byte
	var err error
	switch form {
	case "html":
		raw, err = reportHTML(r)
	case "json":
		raw, err = attest.Marshal(r)
	case "txt":
		var b strings.Builder
		WriteReport(&b, r)
		raw = []byte(b.String())
	case "xml":
		raw, err = reportJUnit(r)
	default:
		return fmt.Errorf("a report cannot be written as %q; use %s", form, strings.Join(Forms, ", "))
	}
	if err == nil {
		_, err = w.Write(raw)
	}
	return err
}

type junitSuite struct {
	XMLName    xml.Name    `xml:"testsuite"`
	Name       string      `xml:"name,attr"`
	Tests      int         `xml:"tests,attr"`
	Failures   int         `xml:"failures,attr"`
	Errors     int         `xml:"errors,attr"`
	Properties []junitProp `xml:"properties>property"`
	Cases      []junitCase `xml:"testcase"`
}

type junitProp struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string      `xml:"classname,attr"`
	Name    string      `xml:"name,attr"`
	Failure *junitFault `xml:"failure"`
	Error   *junitFault `xml:"error"`
}

type junitFault struct {
	Message string `xml:"message,attr"`
}

// reportJUnit has one test for the verdict and one for each metric. A verdict
// that is not CERTIFIED is a failure (REJECTED) or an error (INCONCLUSIVE): JUnit
// has "skipped" too, which pipelines take for a pass, so it is not used.
func reportJUnit(r attest.Report) ([]byte, error) {
	s := junitSuite{Name: "assay: " + r.EnvironmentName, Properties: []junitProp{{"claim", r.Claim}, {"verdict", string(r.Verdict)}, {"difference", r.Difference}}}
	verdict := junitCase{Class: "assay." + r.EnvironmentName, Name: "verdict"}
	fault := &junitFault{fmt.Sprintf("%s: %s", r.Verdict, strings.Join(r.Reasons, "; "))}
	switch r.Verdict {
	case attest.Certified:
	case attest.Rejected:
		verdict.Failure = fault
		s.Failures++
	default:
		verdict.Error = fault
		s.Errors++
	}
	s.Cases = append(s.Cases, verdict)
	for _, m := range r.Metrics {
		c := junitCase{Class: verdict.Class, Name: m.Name}
		if !m.Passed {
			c.Failure = &junitFault{fmt.Sprintf("%s is %s, %s %s is needed (n = %d)", m.Name, m.Value, m.Comparator, m.Threshold, m.SampleSize)}
			s.Failures++
		}
		s.Cases = append(s.Cases, c)
	}
	s.Tests = len(s.Cases)
	raw, err := xml.MarshalIndent(s, "", "  ")
	return append([]byte(xml.Header), append(raw, '\n')...), err
}
