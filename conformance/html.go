package conformance

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
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
		return percent(x)
	},
	"short": func(text string) string {
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return text
		}
		return strconv.FormatFloat(x, 'g', 3, 64)
	},
	"complement": complement,
	"micros":     micros,
	"budgets":    func(t *attest.Traffic) string { return budgets(*t) },
	"errorPlot":  errorPlot, "flipPlot": flipPlot, "latencyPlot": latencyPlot,
}).Parse(pageText))

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
	for _, m := range marks {
		if m.at > 0 {
			if first == 0 {
				first, last = compare.Bucket(m.at), compare.Bucket(m.at)
			}
			first, last = min(first, compare.Bucket(m.at)), max(last, compare.Bucket(m.at))
		}
	}
	left := 14
	if zero >= 0 {
		left += barWidth + 18
	}
	width := left + (last-first+1)*barWidth + 40
	width = max(width, 480) // the names of the axes fit
	var s strings.Builder
	fmt.Fprintf(&s, `<figure><figcaption>%s</figcaption><svg viewBox="0 0 %d %d" width="%d" role="img" aria-label="%s">`,
		template.HTMLEscapeString(title), width, plotHeight+96, width, template.HTMLEscapeString(title))
	base := plotHeight + 34
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
		draw(10, bar{count: zero}, "0")
	}
	for _, b := range bars {
		if b.bucket > 0 {
			draw(left+(b.bucket-first)*barWidth, b, label(b.bucket))
		}
	}
	fmt.Fprintf(&s, `<line class="axis" x1="6" x2="%d" y1="%d" y2="%d"/>`, width-34, base, base)
	for i, m := range marks {
		if !(m.at > 0) || first == 0 {
			continue
		}
		// Within a bucket the axis is linear.
		b := compare.Bucket(m.at)
		share := math.Min(1, math.Max(0, m.at/compare.From(b)-1))
		x := left + (b-first)*barWidth + int(share*barWidth)
		y := 12 + 14*i
		fmt.Fprintf(&s, `<line class="%s" x1="%d" x2="%d" y1="%d" y2="%d"/><text class="mark %s" x="%d" y="%d">%s</text>`,
			m.class, x, x, y+2, base, m.class, min(x+4, width-4), y+4, template.HTMLEscapeString(m.label))
	}
	fmt.Fprintf(&s, `<text class="axisname" x="%d" y="%d">%s</text></svg></figure>`, 8, base+56, template.HTMLEscapeString(axis))
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
	return compare.Bucket(from * (1 + 1e-8))
}

func power2(bucket int) string { return strconv.FormatFloat(compare.From(bucket), 'g', 2, 64) }

// errorPlot is the histogram of numeric differences against floor and tolerance.
func errorPlot(n attest.NumericSummary) template.HTML {
	number := func(text string) float64 {
		x, _ := strconv.ParseFloat(text, 64)
		return x
	}
	return plot("Numeric differences of "+n.Output, "|answer − reference|, each bar up to twice its label; numbers that are the same stand at 0", binBars(n.Histogram), []mark{
		{number(n.Noise), "noise floor of the reference", "floor"}, {number(n.CandidateNoise), "of this environment", "floor2"}, {number(n.Tolerance), "tolerance", "tolerance"},
	}, power2)
}

// flipPlot is how many cases lie how near to another decision, and flip.
func flipPlot(list []attest.DistanceCount) template.HTML {
	var bars []bar
	for _, d := range list {
		from, err := strconv.ParseFloat(d.From, 64)
		if err != nil {
			continue
		}
		bars = append(bars, bar{bucket: bucketAbove(from), count: d.Cases, marked: d.Flips})
	}
	return plot("Cases by how near the reference is to another decision; flips in red", "distance to the decision, each bar up to twice its label", bars, nil, power2)
}

// latencyPlot is the histogram of delays.
func latencyPlot(l *attest.Latency) template.HTML {
	return plot("Latency, from when a question was "+due(l.Schedule), "time to the whole answer, each bar up to twice its label", binBars(l.Bins), []mark{
		{float64(l.P50), "p50", "floor"}, {float64(l.P99), "p99", "tolerance"},
	}, func(bucket int) string {
		return (time.Duration(compare.From(bucket)) * time.Microsecond).Round(time.Microsecond).String()
	})
}
