package conformance

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"text/tabwriter"

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
	fmt.Fprintf(w, "  could have gone unseen: a flip rate below %s (found with probability %s or more above it)\n", r.Power.DetectableRate, complement(r.Power.Beta))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range r.Metrics {
		mark := "ok"
		if !m.Passed {
			mark = "NOT OK"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s %s\tn = %d\t%s\n", m.Name, m.Value, m.Comparator, m.Threshold, m.SampleSize, mark)
	}
	tw.Flush()
	for _, e := range r.Examples {
		fmt.Fprintf(w, "  %s: %s: %s\n", e.Case, e.What, e.Detail)
	}
}

// complement renders 1 - beta without arithmetic on text that is for people.
func complement(beta string) string {
	var x float64
	if _, err := fmt.Sscan(beta, &x); err != nil {
		return "?"
	}
	return percent(1 - x)
}

var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.Verdict}}: {{.EnvironmentName}}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}.CERTIFIED{color:#0a6b2d}.REJECTED{color:#a4161a}.INCONCLUSIVE{color:#8a5a00}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.3rem .6rem;text-align:left}
code{font-size:.85em;overflow-wrap:anywhere}
</style>
<h1><span class="{{.Verdict}}">{{.Verdict}}</span>: {{.EnvironmentName}}</h1>
<p>{{.Claim}}.</p><p>Difference: {{.Difference}}.</p>
{{range .Reasons}}<p>Because {{.}}.</p>{{end}}
<p>{{.Cases.Claim}} claim cases and {{.Cases.Border}} border cases, of which {{.Cases.Compared}} were compared ({{.Cases.Elements}} numbers);
{{.Cases.Missing}} without an attempt, {{.Cases.Failed}} without an answer, {{.Cases.Wrong}} with an answer that is none, {{.Cases.Damaged}} with a damaged record, {{.Cases.Retried}} retried.</p>
<h2>Gates</h2>
<table><tr><th>measure<th>value<th>allowed<th>n<th></tr>
{{range .Metrics}}<tr><td>{{.Name}}<td>{{.Value}}<td>{{.Comparator}} {{.Threshold}}<td>{{.SampleSize}}<td>{{if .Passed}}ok{{else}}<b>not ok</b>{{end}}</tr>{{end}}</table>
<h2>What could have gone unseen</h2>
<p>The plan certifies when at most {{.Power.Allowed}} of {{.Power.Planned}} decisions flip. It excludes a flip rate of {{.Power.Margin}} or more with an error of {{.Power.Alpha}},
and refuses a rate of {{.Power.DetectableRate}} or more except with probability {{.Power.Beta}}. Equivalence with the reference does not say that the reference is right, or fair.</p>
{{if .Flips}}<h2>Decisions that flip</h2><table><tr><th>from<th>to<th>cases</tr>{{range .Flips}}<tr><td>{{.From}}<td>{{.To}}<td>{{.Cases}}</tr>{{end}}</table>{{end}}
{{if .Slices}}<h2>By slice</h2><table><tr><th>slice<th>cases<th>flips</tr>{{range .Slices}}<tr><td>{{.Slice}}<td>{{.Cases}}<td>{{.Flips}}</tr>{{end}}</table>{{end}}
<h2>Numbers</h2>
<table><tr><th>output<th>elements<th>over tolerance<th>other bits<th>largest difference<th>mean difference<th>tolerance<th>noise floor</tr>
{{range .Numerics}}<tr><td>{{.Output}}<td>{{.Elements}}<td>{{.Exceeding}}<td>{{.BitsDiffer}}<td>{{.MaxAbsolute}}<td>{{.Bias}}<td>{{.Tolerance}}<td>{{.Noise}}</tr>{{end}}</table>
{{if .Examples}}<h2>Cases</h2><table><tr><th>case<th>what<th>detail</tr>{{range .Examples}}<tr><td>{{.Case}}<td>{{.What}}<td>{{.Detail}}</tr>{{end}}</table>{{end}}
<h2>Identities</h2>
<table>{{range $k, $v := .Names}}<tr><td>{{$k}}<td><code>sha256:{{index $v.Digest "sha256"}}</code></tr>{{end}}</table>
</html>
`))

// reportHTML renders a report as one page that needs nothing else.
func reportHTML(r attest.Report) ([]byte, error) {
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		attest.Report
		Names map[string]attest.Resource
	}{r, map[string]attest.Resource{"model": r.Model, "environment": r.Environment, "suite": r.Suite, "criteria": r.Criteria, "plan": r.Plan}})
	return b.Bytes(), err
}
