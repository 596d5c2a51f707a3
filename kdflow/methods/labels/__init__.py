"""Labellers: what the student is taught about a strong view x'.

Every other module of this package is one, as a function and what it asks of the teacher beforehand:
`loss(student, strong, labels, teacher_logits_x, tau)`, where `student` are the student's logits of `strong.images`,
`labels` and `teacher_logits_x` are the labels and the teacher's logits of the batch x, and `strong.teacher_logits` are the
teacher's logits of x'; `NEEDS_X` and `NEEDS_STRONG` say which of the two must be there.
"""
