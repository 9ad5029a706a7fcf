package conformance

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-dev/assay/verify/attest"
)

//go:embed report.html
var pageText string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"percent": func(text string) string {
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return text
		}
		return typeset(short(strconv.FormatFloat(100*x, 'g', -1, 64)) + " %")
	},
	"short":      short,
	"plain":      plainMetrics,
	"complement": func(beta string) string { return typeset(complement(beta)) },
	"micros":     micros,
	"accuracy": func(a *attest.AccuracySummary, p attest.OperatingCharacteristics) []string {
		return accuracyWords(*a, p.Alpha, p.Beta)
	},
	"clusters": func(c *attest.ClusterSummary, p attest.OperatingCharacteristics) string {
		return clusterWords(*c, p.Alpha)
	},
	"reference": referenceName,
	"budgets":   func(t *attest.Traffic) string { return budgets(*t) },
	"threads":   func(p *attest.ProbeCounts) string { return threadWords(*p) },
	"errorPlot": errorPlot, "turnPlot": turnPlot, "flipPlot": flipPlot, "latencyPlot": latencyPlot, "pacePlots": pacePlots,
}).Parse(pageText))

// short renders a number with three digits; the document has them all. Counts
// stay as they are.
func short(text string) string {
	x, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil:
		return text
	case math.IsInf(x, 1):
		return "∞"
	case !strings.ContainsAny(text, ".eE"):
		return text
	case math.Abs(x) >= 1000 && math.Abs(x) < 1e6:
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 3, 64)
}

// typeset keeps a number and its percent sign on one line.
func typeset(text string) string { return strings.ReplaceAll(text, " %", "\u00a0%") }

// plainMetrics are the measures that do not repeat what the table of the gates
// says.
func plainMetrics(r attest.Report) (list []attest.Metric) {
	gates := map[string]bool{}
	for _, g := range r.Gates {
		for _, h := range g.Hypotheses {
			gates[metricOf(g, h)] = true
		}
	}
	for _, m := range r.Metrics {
		if !gates[m.Name] {
			list = append(list, m)
		}
	}
	return list
}

// reportHTML renders a report as one page that needs nothing else: no script, no
// font, no picture from elsewhere.
func reportHTML(r attest.Report) ([]byte, error) {
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		attest.Report
		Names map[string]attest.Resource
	}{r, map[string]attest.Resource{"model": r.Model, "environment": r.Environment, "suite": r.Suite, "criteria": r.Criteria, "plan": r.Plan}})
	return b.Bytes(), err
}

// A bar of a plot: what is counted from a number up to twice that.
type bar struct {
	bucket, count, marked int
}

// A mark is a line across a plot.
type mark struct {
	at    float64 // a number on the axis
	label string
	class string
}

const (
	plotHeight = 150
	barWidth   = 26
)

// plot draws bars of numbers by powers of two, so that the axis is logarithmic,
// and marks. Buckets between the first and the last are drawn though they are
// empty, as a gap says something too.
func plot(title, axis string, bars []bar, marks []mark, label func(bucket int) string) template.HTML {
	if len(bars) == 0 {
		return ""
	}
	first, last, most := bars[0].bucket, bars[0].bucket, 1
	zero := -1 // the count of what is exactly 0 stands apart
	for _, b := range bars {
		if b.bucket == 0 {
			zero = b.count
			most = max(most, b.count)
			continue
		}
		if first == 0 {
			first, last = b.bucket, b.bucket
		}
		first, last, most = min(first, b.bucket), max(last, b.bucket), max(most, b.count)
	}
	marks = slices.DeleteFunc(marks, func(m mark) bool { return !(m.at > 0) || math.IsInf(m.at, 1) })
	for _, m := range marks {
		if first == 0 {
			first, last = octave(m.at), octave(m.at)
		}
		first, last = min(first, octave(m.at)), max(last, octave(m.at))
	}
	left := 30 // the first label leans out to the left
	if zero >= 0 {
		left += barWidth + 18
	}
	width := left + (last-first+1)*barWidth + 40
	width = max(width, 480)   // the names of the axes fit
	top := 20 + 14*len(marks) // the names of the marks stand above the bars
	var s strings.Builder
	fmt.Fprintf(&s, `<figure><figcaption>%s</figcaption><svg viewBox="0 0 %d %d" width="%d" role="img" aria-label="%s">`,
		template.HTMLEscapeString(title), width, top+plotHeight+44, width, template.HTMLEscapeString(title))
	base := top + plotHeight
	draw := func(x int, b bar, text string) {
		height := max(b.count*plotHeight/most, 1)
		if b.count == 0 {
			height = 0
		}
		fmt.Fprintf(&s, `<rect class="bar" x="%d" y="%d" width="%d" height="%d"/>`, x+2, base-height, barWidth-4, height)
		if b.marked > 0 {
			h := max(b.marked*plotHeight/most, 2)
			fmt.Fprintf(&s, `<rect class="flip" x="%d" y="%d" width="%d" height="%d"/>`, x+2, base-h, barWidth-4, h)
		}
		if b.count > 0 {
			n := strconv.Itoa(b.count)
			if b.marked > 0 {
				n = strconv.Itoa(b.marked) + "/" + n
			}
			fmt.Fprintf(&s, `<text class="n" x="%d" y="%d">%s</text>`, x+barWidth/2, base-height-4, n)
		}
		if text != "" {
			fmt.Fprintf(&s, `<text class="tick" x="%d" y="%d" transform="rotate(-40 %d %d)">%s</text>`, x+barWidth/2+3, base+12, x+barWidth/2+3, base+12, template.HTMLEscapeString(text))
		}
	}
	if zero >= 0 {
		draw(26, bar{count: zero}, "0")
	}
	for _, b := range bars {
		if b.bucket > 0 {
			draw(left+(b.bucket-first)*barWidth, b, label(b.bucket))
		}
	}
	fmt.Fprintf(&s, `<line class="axis" x1="6" x2="%d" y1="%d" y2="%d"/>`, width-34, base, base)
	for i, m := range marks {
		// Within a bucket the axis is linear.
		b := octave(m.at)
		share := math.Min(1, math.Max(0, m.at/octaveFrom(b)-1))
		x := left + (b-first)*barWidth + int(share*barWidth)
		y := 12 + 14*i
		fmt.Fprintf(&s, `<line class="%s" x1="%d" x2="%d" y1="%d" y2="%d"/><text class="mark %s" x="%d" y="%d">%s</text>`,
			m.class, x, x, y+2, base, m.class, min(x+4, width-4), y+4, template.HTMLEscapeString(m.label))
	}
	fmt.Fprintf(&s, `</svg><p class="axisname">%s</p></figure>`, template.HTMLEscapeString(axis))
	return template.HTML(s.String())
}

func binBars(bins []attest.Bin) (bars []bar) {
	for _, b := range bins {
		from, err := strconv.ParseFloat(b.From, 64)
		if err != nil {
			continue
		}
		bars = append(bars, bar{bucket: bucketAbove(from), count: b.Count})
	}
	return bars
}

// bucketAbove is the bucket that begins at a number which was rounded to 9
// digits, and may so lie a little below it.
func bucketAbove(from float64) int {
	if from == 0 {
		return 0
	}
	return octave(from * (1 + 1e-8))
}

// octave numbers the powers of two from 1 on; 0 is left for what is exactly 0.
func octave(x float64) int {
	if x == 0 {
		return 0
	}
	return math.Ilogb(x) + 1075
}

// octaveFrom is the smallest number of an octave.
func octaveFrom(n int) float64 { return math.Ldexp(1, n-1075) }

func power2(bucket int) string { return strconv.FormatFloat(octaveFrom(bucket), 'g', 2, 64) }

// number is where decimal text stands on an axis; what is none stands at 0.
func number(text string) float64 {
	x, _ := strconv.ParseFloat(text, 64)
	return x
}

// errorPlot is the histogram of numeric differences against floor and tolerance.
func errorPlot(n attest.NumericSummary) template.HTML {
	return plot("Numeric differences of "+n.Output, "|answer − reference|, each bar up to twice its label; numbers that are the same stand at 0", binBars(n.Histogram), []mark{
		{number(n.Noise), "noise floor of the reference", "floor"}, {number(n.CandidateNoise), "of this environment", "floor2"}, {number(n.Tolerance), "tolerance", "tolerance"},
	}, power2)
}

// turnPlot is the histogram of cosine distances against floor and tolerance.
func turnPlot(e attest.EmbeddingSummary) template.HTML {
	return plot("Cosine distances of "+e.Output, "1 − cosine of answer and reference, each bar up to twice its label; vectors that are the same stand at 0", binBars(e.Histogram), []mark{
		{number(e.Noise), "noise floor of the reference", "floor"}, {number(e.CandidateNoise), "of this environment", "floor2"}, {number(e.Tolerance), "tolerance", "tolerance"},
	}, power2)
}

// flipPlot is how many cases lie how near to another decision, and flip.
func flipPlot(list []attest.DistanceCount, texts *attest.TextSummary) template.HTML {
	var bars []bar
	for _, d := range list {
		from, err := strconv.ParseFloat(d.From, 64)
		if err != nil {
			continue
		}
		bars = append(bars, bar{bucket: bucketAbove(from), count: d.Cases, marked: d.Flips})
	}
	axis := "distance to the decision"
	if texts != nil {
		axis = "lead in log probability over another token"
	}
	return plot("Cases by how near the reference is to another decision; flips in red", axis+", each bar up to twice its label; above it cases, or flips/cases", bars, nil, power2)
}

// latencyPlot is the histogram of delays.
func latencyPlot(l *attest.Latency) template.HTML {
	return delayPlot("Latency, from when a question was "+due(l.Schedule), "time to the whole answer", l.Bins, l.P50, l.P99)
}

// pacePlots are the histograms of the delays of a stream.
func pacePlots(l *attest.Latency) template.HTML {
	var out template.HTML
	if d := l.FirstToken; d != nil {
		out += delayPlot("To the first token, from when a question was "+due(l.Schedule), "time to the first piece of the text", d.Bins, d.P50, d.P99)
	}
	if d := l.PerToken; d != nil {
		out += delayPlot("From one token to the next, on average over an answer", "time per token after the first", d.Bins, d.P50, d.P99)
	}
	return out
}

func delayPlot(title, axis string, bins []attest.Bin, p50, p99 int64) template.HTML {
	return plot(title, axis+", each bar up to twice its label", binBars(bins), []mark{{float64(p50), "p50", "floor"}, {float64(p99), "p99", "tolerance"}}, func(bucket int) string {
		return (time.Duration(octaveFrom(bucket)) * time.Microsecond).Round(time.Microsecond).String()
	})
}
