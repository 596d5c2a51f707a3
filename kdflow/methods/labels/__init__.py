"""Labels of a strong view x': the targets that the student is trained with.

Each other module of this package is a label that a recipe may name. It defines
`loss(student, strong, labels, teacher_logits_x, tau)`, the mean loss over the views, where `student` has the student's
logits of `strong.images`, `labels` and `teacher_logits_x` are the labels and the teacher's logits of the batch x, and
`strong.teacher_logits` are the teacher's logits of x'. The constants `NEEDS_X` and `NEEDS_STRONG` state whether it
needs `teacher_logits_x` and `strong.teacher_logits`.
"""
