package androidx.compose.material3

import androidx.compose.runtime.Composable

@Composable
fun Text(text: String): Unit = throw NotImplementedError()

@Composable
fun Button(onClick: () -> Unit, content: @Composable () -> Unit): Unit = throw NotImplementedError()
