"""Compare training recipes over seeds: is a change better, and how certain is that?

| module        | content                                                              |
| ------------- | -------------------------------------------------------------------- |
| `comparing`   | `compare`: train what is missing, and compare                        |
| `report`      | `Comparison`: the result                                             |
| `tables`      | its table, conclusions and notes                                     |
| `differences` | differences between arms, with their uncertainty                     |
| `figures`     | `show_comparison`                                                    |
| `arms`        | `Arm`: one of the things to compare                                  |
| `identity`    | how two arms differ                                                  |
| `running`     | train and evaluate one run                                           |
| `initial`     | equal initial weights in all arms                                    |
| `storing`     | a folder of results that several processes and machines share        |
| `lines`       | read result lines, also of other scripts, and group them by arm      |
| `metrics`     | what a run reports, and its units                                    |
| `statistics`  | intervals, power and correction for several comparisons              |
| `sequential`  | e-values: stop as soon as the result is clear                        |
"""
